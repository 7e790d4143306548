"""`python -m service` is the `stepwell` program."""

from service.cli import main

main()
