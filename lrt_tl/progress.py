"""How progress shows: bars of what takes longer than a second, rarely drawn, gone when done. For `tqdm(…, **BAR)`."""

from typing import Any

BAR: dict[str, Any] = {"leave": False, "delay": 1.0, "mininterval": 0.5}
