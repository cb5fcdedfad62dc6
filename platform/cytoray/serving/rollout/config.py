"""Configuration of rollouts: which version a service follows, how often it looks, and a challenger beside it."""

from __future__ import annotations

from pydantic import Field

from cytoray.config import Config, Location


class ChallengerConfig(Config):
    """A second version that answers, or computes beside, a share of the requests."""

    alias: str = Field(
        "challenger", pattern=r"^[A-Za-z0-9_.-]+$", description="Alias of the version in the registry; may be missing."
    )
    share: float = Field(0.05, gt=0, le=1, description="Share of the requests, chosen by a hash of the request.")
    shadow: bool = Field(
        True,
        description="true: its answers are compared and not returned; false: it answers its share, and the answers of "
        "the version that serves are compared.",
    )


class RolloutConfig(Config):
    """How a service follows an alias such as models:/NAME@champion; other models never change."""

    follow: bool = Field(True, description="Serve another version when the alias moves; false: until the next start.")
    poll_s: float = Field(15.0, gt=0, description="Seconds between two looks at the alias.")
    load_timeout_s: float = Field(
        600.0, gt=0, description="Maximum time in seconds to download, load and check a version."
    )
    keep_previous_s: float = Field(
        3600.0, ge=0, description="Seconds that the version before stays loaded, so that going back takes no time."
    )
    memory_margin_bytes: int = Field(
        256 * 2**20, ge=0, description="Free memory in bytes that must remain when a version has been loaded."
    )
    webhook_secret_file: Location | None = Field(
        None, description="Local file with the secret of MLflow's webhook; null: the route is off."
    )
    challenger: ChallengerConfig | None = Field(None, description="A version to compare; null: none.")
