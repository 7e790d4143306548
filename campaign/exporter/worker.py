"""A process that judges the models whose names it reads, one a line, and prints one JSON document for each."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
import warnings


def main() -> None:
    """Judge until the input ends. What libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    from campaign.exporter.cases import find
    from campaign.exporter.verdicts import judge_case

    for line in sys.stdin:
        print(json.dumps(dataclasses.asdict(judge_case(find(line.strip())))), file=answers, flush=True)


if __name__ == "__main__":
    main()
