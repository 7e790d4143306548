"""Model files to and from the Hugging Face Hub.

    repository.py  `push`, `pull`: a step graph as a repository
    model_card.py  `model_card`: the repository's page, with the report of the verification

Needs the extra `hub`.
"""

from __future__ import annotations

from stepwell.commands import Command

COMMANDS = {
    "push": Command("Upload a model file to the Hugging Face Hub.", "stepwell.addons.hub.command:push"),
    "pull": Command("Download a model file from the Hugging Face Hub.", "stepwell.addons.hub.command:pull"),
}
