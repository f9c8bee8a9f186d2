"""Settings of generation: what is out of range or at odds is named at once."""

import pytest

from data.errors import UserError
from trainer.generation.settings import Decoding


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"temperature": -1.0}, r"temperature must be 0 \(the likeliest\) or at least 0.0001"),
        ({"temperature": 1e-45}, "or at least 0.0001"),
        ({"temperature": float("nan")}, r"temperature must be 0 \(the likeliest\) or at least 0.0001"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p must be above 0"),
        ({"temperature": 1.0, "min_p": 1.5}, "min_p must be from 0 to 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be above 0"),
        ({"num_beams": 2, "length_penalty": float("nan")}, "length_penalty must be from -16 to 16"),
        ({"num_beams": 2, "length_penalty": 1000.0}, "length_penalty must be from -16 to 16"),
        ({"num_beams": 2, "early_stopping": "soon"}, "early_stopping must be false, true or never"),
        ({"top_k": -1, "num_return_sequences": 0}, "num_return_sequences must be at least 1(.|\n)*top_k -1 says which"),
        ({"min_new_tokens": 5}, "min_new_tokens 5 is more than max_new_tokens 4"),
        ({"num_beams": 4, "temperature": 0.7}, "num_beams 4 takes the likeliest texts and temperature 0.7 samples"),
        ({"early_stopping": True}, "early_stopping True means something only in beam search"),
        ({"length_penalty": 2.0}, "length_penalty 2.0 means something only in beam search"),
        ({"top_p": 0.9}, "top_p 0.9 says which tokens to sample from, and temperature 0 takes the likeliest"),
        ({"num_return_sequences": 2}, "num_return_sequences 2 is more than the 1 that greedy"),
        ({"num_beams": 3, "num_return_sequences": 4}, "num_return_sequences 4 is more than num_beams 3"),
    ],
)
def test_settings_that_can_not_be_meant_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        Decoding(**{"max_new_tokens": 4} | settings)


def test_a_text_longer_than_the_context_is_refused_or_ends_there_as_said():
    with pytest.raises(
        UserError, match="prompt 2 has 30 tokens, and 20 new ones make 50: the model's context holds 40"
    ):
        Decoding(20).limits([5, 30], 40)
    assert Decoding(20, at_context="stop").limits([5, 30], 40) == [20, 10]
    assert Decoding(10).limits([5, 30], 40) == [10, 10]
