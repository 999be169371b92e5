"""Make the picture of the README: `python docs/screenshot.py outputs/demo/report.html`.

Needs Chromium or Chrome, which opens the report as a reader would. The picture is the first screen, in as many colours
as fit below 150 kB.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

PICTURE = Path(__file__).parent / "images/report.png"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
LARGEST = 150_000


def main() -> int:
    """Take the picture."""
    parser = argparse.ArgumentParser(description="Make the picture of the README from a report.")
    parser.add_argument("report", type=Path, help="report.html of a run")
    parser.add_argument(
        "--out", type=Path, default=PICTURE, help="where to write (default: docs/images/report.png)"
    )
    parser.add_argument(
        "--size", default="1200x900", help="width and height of the window (default: 1200x900)"
    )
    options = parser.parse_args()
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        sys.stderr.write(f"Expected one of {', '.join(BROWSERS)} on the PATH. Install Chromium.\n")
        return 1
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        taken = Path(folder) / "screen.png"
        take(browser, options.report, taken, options.size)
        size = save(taken, options.out)
    sys.stdout.write(f"{options.out}: {size:,} bytes\n")
    return 0 if size < LARGEST else 1


def take(browser: str, report: Path, picture: Path, size: str) -> None:
    """Open a report in a browser without a window, and save its first screen."""
    subprocess.run(
        [
            *(browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *(f"--window-size={size.replace('x', ',')}", f"--user-data-dir={picture.parent / 'profile'}"),
            # Figures are drawn by scripts after the page has loaded.
            *("--virtual-time-budget=10000", f"--screenshot={picture}", report.resolve().as_uri()),
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )


def save(taken: Path, out: Path) -> int:
    """Write a picture with as many colours as fit below the largest size; return the number of bytes."""
    with Image.open(taken) as image:
        for colours in (256, 128, 64, 32):
            image.convert("RGB").quantize(colours).save(out, optimize=True)
            if out.stat().st_size < LARGEST:
                break
    return out.stat().st_size


if __name__ == "__main__":
    sys.exit(main())
