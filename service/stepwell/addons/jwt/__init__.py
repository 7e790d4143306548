"""JSON Web Tokens of an identity provider, which are accepted as API keys are."""
