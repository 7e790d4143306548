"""`python -m service` is the `stepwell` program."""

from service.interrupted import loading

with loading():
    from service.cli import main

main()
