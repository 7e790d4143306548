"""Models of published packages, exported as their users construct them; no test, since it needs those packages."""
