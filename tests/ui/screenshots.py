"""Take screenshots of everything that users look at, in the installed Chromium.

.venv/bin/python -m tests.ui.screenshots --config demo --to tests/ui/screenshots

The README and the documentation show some of them; `--all` takes the others, too: the terminal, a
notebook, the form of a new run, and the gallery on a phone and in the dark.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

from flows.cli.options import PACKAGED, find_config
from flows.ui.demo_server import run_with, serving
from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset import layout
from tests.ui.conftest import FLAGS, find_chromium
from tests.ui.terminal import run_in_terminal, terminal_page

VIEWPORT: ViewportSize = {"width": 1280, "height": 860}
"""Size of the screenshots in CSS pixels."""

PHONE: ViewportSize = {"width": 390, "height": 844}
"""Size of a phone."""

TIMEOUT = 600_000
"""Time limit of a page in milliseconds; an idle machine needs seconds."""

NOTEBOOK = PACKAGED.parent / "examples" / "notebook.ipynb"


def main() -> None:
    """Run a configuration on a new Prefect server, and take the screenshots."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="demo")
    parser.add_argument("--to", type=Path, default=Path(__file__).with_name("screenshots"))
    parser.add_argument("--port", type=int, default=4271)
    parser.add_argument("--all", action="store_true", help="also those that no page shows")
    options = parser.parse_args()
    options.to.mkdir(parents=True, exist_ok=True)
    config = RunConfig.load(find_config(options.config))
    with tempfile.TemporaryDirectory() as folder:
        output = str(Path(folder, "dataset"))
        with serving(Path(folder, "prefect"), options.port) as address:
            printed = ""
            if options.all:
                command = ["run", options.config, "--output", output]
                printed = run_in_terminal(command, {"PREFECT_API_URL": f"{address}/api"})
            else:
                run_with(address, options.config, "--output", output)
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(
                    executable_path=find_chromium(), args=list(FLAGS)
                )
                gallery = Path(output, layout.GALLERY_PAGE)
                take_run(browser, address, options.to / "run.webp")
                take_artifact(browser, address, config.name, options.to / "artifact.webp")
                take_gallery(browser, gallery, options.to / "gallery.webp")
                if options.all:
                    take_phone(browser, gallery, options.to / "gallery-phone.webp")
                    take_gallery(browser, gallery, options.to / "gallery-dark.webp", dark=True)
                    take_form(browser, address, options.to / "form.webp")
                    take_terminal(browser, printed, output, options.to / "terminal.webp")
                    page = run_notebook(Path(folder), f"{address}/api")
                    take_notebook(browser, page, options.to / "notebook.webp")
                browser.close()


def take_run(browser: Browser, address: str, to: Path) -> None:
    """Capture the page of the flow run with the timeline of its task runs."""
    (run, *_) = query_api(address, "flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 1})
    page = open_page(browser, f"{address}/runs/flow-run/{run['id']}")
    page.get_by_text("Completed").first.wait_for(timeout=TIMEOUT)
    page.get_by_text("publish 00000").first.wait_for(timeout=TIMEOUT)
    page.wait_for_timeout(3000)
    save(page, to)


def take_artifact(browser: Browser, address: str, name: str, to: Path) -> None:
    """Capture the page of the artifact with figures and images."""
    found = newest(address, f"{name}-figures")
    page = open_page(browser, f"{address}/artifacts/artifact/{found['id']}")
    page.locator("img[src^='data:image/webp']").first.wait_for(timeout=TIMEOUT)
    page.wait_for_timeout(2000)
    save(page, to)


def take_gallery(browser: Browser, path: Path, to: Path, dark: bool = False) -> None:
    """Capture the gallery, opened from disk."""
    page = open_page(browser, path.resolve().as_uri(), dark=dark)
    page.locator("#grid img").first.wait_for(timeout=TIMEOUT)
    page.wait_for_timeout(2000)
    save(page, to)


def take_phone(browser: Browser, path: Path, to: Path) -> None:
    """Capture the gallery on a phone."""
    page = open_page(browser, path.resolve().as_uri(), PHONE)
    page.locator("#grid img").first.wait_for(timeout=TIMEOUT)
    page.wait_for_timeout(2000)
    save(page, to)


def form_address(address: str, name: str, **parameters: Any) -> str:
    """Register the flow as a deployment on a server, and return the page with its form."""
    from prefect.utilities.callables import parameter_schema

    from flows.generate_dataset import generate_dataset

    flow = post(address, "flows/", {"name": generate_dataset.name})
    deployment = post(address, "deployments/", {
        "name": name,
        "flow_id": flow["id"],
        "parameters": parameters,
        "parameter_openapi_schema": parameter_schema(generate_dataset.fn).model_dump(),
        "enforce_parameter_schema": True,
    })  # fmt: skip
    return f"{address}/deployments/deployment/{deployment['id']}/run"


def take_form(browser: Browser, address: str, to: Path) -> None:
    """Capture the form of a new run."""
    config = RunConfig.load(find_config("demo")).model_dump(mode="json")
    page = open_page(browser, form_address(address, "screenshot", config=config))
    page.get_by_text("Candidates per prompt").first.wait_for(timeout=TIMEOUT)
    page.wait_for_timeout(2000)
    page.get_by_text("Candidates per prompt").first.scroll_into_view_if_needed()
    save(page, to)


def take_terminal(browser: Browser, run: str, output: str, to: Path) -> None:
    """Capture what `run` and `top` show in a terminal."""
    shown = {"rudalle-flows run demo": run}
    shown["rudalle-flows top output/demo --once"] = run_in_terminal(["top", output, "--once"], {})
    page = browser.new_page(viewport=VIEWPORT)
    page.set_content(terminal_page(shown))
    page.set_viewport_size({
        "width": page.evaluate("document.body.offsetWidth"),
        "height": page.evaluate("document.body.offsetHeight"),
    })  # fmt: skip
    save(page, to)


def run_notebook(folder: Path, api: str) -> Path:
    """Execute the example notebook, and return it as a page."""
    import nbformat
    from nbclient import NotebookClient
    from nbconvert import HTMLExporter

    notebook = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    variables = {"PYTHONPATH": str(PACKAGED.parent), "PREFECT_API_URL": api}
    client.execute(env={**os.environ, **variables})
    page = folder / "notebook.html"
    exporter = HTMLExporter()  # type: ignore[no-untyped-call]
    page.write_text(exporter.from_notebook_node(notebook)[0], encoding="utf-8")
    return page


def take_notebook(browser: Browser, path: Path, to: Path) -> None:
    """Capture the cells of an executed notebook with the run."""
    page = open_page(browser, path.as_uri(), {"width": 1000, "height": 1150})
    page.locator(".rudalle-run").wait_for(timeout=TIMEOUT)
    page.get_by_text("make_dataset does what").scroll_into_view_if_needed()
    page.wait_for_timeout(1000)
    save(page, to)


def open_page(
    browser: Browser, url: str, viewport: ViewportSize = VIEWPORT, dark: bool = False
) -> Page:
    """Open a page at the size of the screenshots, in one of the colour schemes."""
    page = browser.new_page(viewport=viewport, color_scheme="dark" if dark else "light")
    page.set_default_timeout(TIMEOUT)
    page.goto(url)
    return page


def save(page: Page, to: Path) -> None:
    """Save a screenshot of the page as a small WebP file, and close the page."""
    image = Image.open(io.BytesIO(page.screenshot()))
    image.convert("RGB").save(to, "WEBP", quality=80, method=6)
    page.close()
    print(f"{to}, {to.stat().st_size / 1000:.0f} kB")


def newest(address: str, key: str) -> dict[str, Any]:
    """Return the newest artifact with a key."""
    query = {"artifacts": {"key": {"any_": [key]}}, "sort": "CREATED_DESC", "limit": 1}
    (found,) = query_api(address, "artifacts/filter", query)
    return found


def query_api(address: str, path: str, query: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a query to Prefect's API."""
    found: list[dict[str, Any]] = post(address, path, query)
    return found


def post(address: str, path: str, content: dict[str, Any]) -> Any:
    """Post JSON to Prefect's API, and return its answer."""
    request = urllib.request.Request(
        f"{address}/api/{path}", json.dumps(content).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


if __name__ == "__main__":
    main()
