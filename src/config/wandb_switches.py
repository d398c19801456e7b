"""W&B's own switches: what `wandb.mode` and `wandb.tags` are where nobody has set them."""

import configparser
import os
from pathlib import Path

ALIASES = {"dryrun": "offline", "run": "online"}  # W&B's older words


def default_mode() -> str:
    """WANDB_MODE, then WANDB_DISABLED, then what `wandb disabled` (or offline, online) has written; else offline."""
    disabled = os.environ.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes", "on")
    mode = os.environ.get("WANDB_MODE") or ("disabled" if disabled else mode_of_settings()) or "offline"
    return ALIASES.get(mode, mode)


def mode_of_settings() -> str | None:
    """The mode in W&B's settings files: this folder's, else the user's."""
    user = Path(os.environ.get("WANDB_CONFIG_DIR", "~/.config/wandb")).expanduser()
    settings = configparser.ConfigParser(interpolation=None)
    try:
        settings.read([user / "settings", Path("wandb/settings"), Path(".wandb/settings")], encoding="utf-8")
    except configparser.Error:
        return None  # W&B itself says what is wrong with it
    return settings.get("default", "mode", fallback=None)


def default_tags() -> list[str]:
    """Those of WANDB_TAGS, which W&B's client reads only where it is given none."""
    return [tag.strip() for tag in os.environ.get("WANDB_TAGS", "").split(",") if tag.strip()]
