"""``python -m wan_core`` is ``wan``."""

from wan_core.cli import main

if __name__ == "__main__":
    main()
