"""Text from a model: settings, what is done to logits, sampling, beam search, and the text as it comes."""
