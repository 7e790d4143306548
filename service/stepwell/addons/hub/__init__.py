"""Model files to and from the Hugging Face Hub.

    repository.py  `push`, `pull`: a step graph as a repository
    model_card.py  `model_card`: the repository's page, with the report of the verification

Needs the extra `hub`.
"""
