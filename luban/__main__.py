"""`python -m luban`: the command where its script isn't on the path."""

from luban import main

main()
