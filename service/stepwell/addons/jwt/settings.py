"""`JwtSettings`: whose tokens are accepted."""

from __future__ import annotations

from stepwell.settings import AddonSettings, Settings


class JwtSettings(AddonSettings):
    """The settings of tokens."""

    jwt_keys: str | None = None
    """JWK set of an identity provider, a file or an https URL; its tokens are accepted as keys. Needs the extra jwt."""
    jwt_issuer: str | None = None
    """Required issuer of tokens: their claim iss."""
    jwt_audience: str | None = None
    """Whom a token has to be for: its claim aud."""
    jwt_tenant_claim: str = "tenant"
    """The claim that names the tenant; scopes are in `scope`, `scp` or `scopes`."""

    @property
    def accepts_tokens(self) -> bool:
        """Whether tokens are accepted: the provider's keys are configured."""
        return self.jwt_keys is not None

    def check(self, settings: Settings) -> None:
        """Load the keys, if there are any.

        Raises:
            KeysFileError: As for `JwtVerifier`.
        """
        if self.accepts_tokens:
            from stepwell.addons.jwt.verifier import JwtVerifier  # only here: it loads what the settings do not need

            JwtVerifier(self)
