"""A page to try prompts: draw candidates, compare them by score, enlarge one, keep good prompts.

The kept prompts can be downloaded as a prompt table and a configuration for `rudalle-flows run`,
which draws exactly the images shown here. The page listens only on the loopback address and loads
nothing from other hosts: its font is packaged, and Gradio's telemetry is off.
"""

from __future__ import annotations

import base64
import csv
import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # must be set before gradio is imported
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import gradio as gr
from fastapi import FastAPI

from flows.ui.local_server import HOST, MAX_BODY, LocalServer
from rudalle_lib.api.studio import Studio, Trial
from rudalle_lib.config.run import RunConfig
from rudalle_lib.errors import RudalleError
from rudalle_lib.escaping import csv_cell, html_text
from rudalle_lib.humanize import counted
from rudalle_lib.images.codecs import to_pil
from rudalle_lib.report.templates import read_template

MAX_CANDIDATES = 64
"""Maximum number of candidates per prompt."""

MAX_QUEUE = 32
"""Maximum number of actions that wait for the device."""

LOGO = (
    '<svg viewBox="0 0 112 56" aria-hidden="true">'
    '<rect width="56" height="56" fill="currentColor"/>'
    '<path d="M71 20 101 26 95 55 65 49Z" fill="#d42a1e"/></svg>'
)
"""The project's mark, as SVG."""

RUN_NAME = "my-prompts"
"""Name of the run of the kept prompts; its output is a folder of that name below `output`."""

SELECT = "<p>Select a candidate to see it at the size that a run would publish.</p>"

NO_PROMPTS = "<p>No prompts kept yet.</p>"


def prompt_table(prompts: Sequence[str]) -> str:
    """Return a prompt table of these prompts as CSV, safe to open in a spreadsheet."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["prompt"])
    rows.writerows([csv_cell(prompt)] for prompt in prompts)
    return text.getvalue()


def run_configuration(config: RunConfig, images: int, seed: int) -> str:
    """Return the configuration of a run that draws the images shown on the page, as YAML."""
    data = config.model_dump(mode="json", exclude_defaults=True)
    data |= {"name": RUN_NAME, "output": f"output/{RUN_NAME}", "seed": seed}  # a dataset of its own
    data["prompts"] = {"uri": "prompts.csv"}
    data["generate"] = {**data.get("generate", {}), "images": images}
    head = "# From `rudalle-flows app`. To run it: rudalle-flows run run.yaml\n"
    return head + yaml.safe_dump(data, allow_unicode=True, sort_keys=False)


class Page:
    """The actions of the page; the layout is in `build_page`."""

    def __init__(self, studio: Studio, folder: Path) -> None:
        self._studio = studio
        self._folder = folder

    def draw(self, text: str, images: float, seed: float) -> Iterator[tuple[Any, ...]]:
        """Draw candidates; yield the tiles, the candidates and a message as they arrive."""
        try:
            prompt = self._studio.read(text)
            russian = "" if prompt.text == prompt.text_ru else prompt.text_ru
            count = _candidates(images)
            yield [], [], _message(russian, f"Drawing {counted(count, 'candidate')} …")
            for candidates in self._studio.draw(prompt, count, _seed(seed)):
                state = f"{len(candidates)} of {counted(count, 'candidate')}, highest score first"
                yield _tiles(candidates), candidates, _message(russian, state)
        except RudalleError as error:
            yield [], [], f'<p class="error" role="alert">{html_text(str(error))}</p>'

    def enlarge(self, candidates: Sequence[Trial], event: gr.SelectData) -> tuple[Any, str]:
        """Return the selected candidate as a run would publish it, and its details as HTML."""
        chosen = candidates[event.index]
        image = to_pil(self._studio.enlarge(chosen))
        facts = [("score", f"{chosen.score:.3f}")]
        if chosen.second_score is not None:
            facts.append(("second score", f"{chosen.second_score:.3f}"))
        facts += [
            ("rank", f"{event.index + 1} of {len(candidates)}"),
            ("in a run", _verdict(chosen, self._studio.undecided)),
            ("size", f"{image.width} × {image.height}"),
            ("image id", chosen.image_id),
        ]
        rows = "".join(
            f"<div><dt>{html_text(n)}</dt><dd>{html_text(v)}</dd></div>" for n, v in facts
        )
        return image, f"<dl>{rows}</dl>"

    def keep(self, text: str, kept: str) -> str:
        """Append a prompt to the list, unless the list already contains it."""
        return "\n".join(_prompts(kept + "\n" + " ".join(text.split())))

    def export(self, kept_text: str, images: float, seed: float) -> tuple[Any, Any, str]:
        """Write the files of a run of the kept prompts, and explain how to start it."""
        kept = _prompts(kept_text)
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        table, config = folder / "prompts.csv", folder / "run.yaml"
        table.write_text(prompt_table(kept), encoding="utf-8")
        count = _candidates(images)
        settings = run_configuration(self._studio.config, count, _seed(seed))
        config.write_text(settings, encoding="utf-8")
        size = f"{counted(len(kept), 'prompt')}, {counted(len(kept) * count, 'candidate')}"
        instructions = f"<p>{size}. Save both files in one folder and run there:</p>"
        instructions += "<code>rudalle-flows run run.yaml</code>"
        return (
            gr.update(value=str(table), interactive=bool(kept)),
            gr.update(value=str(config), interactive=bool(kept)),
            instructions if kept else NO_PROMPTS,
        )


def build_page(studio: Studio, folder: Path) -> gr.Blocks:
    """Build the page; the files to download are written below `folder`."""
    config, page = studio.config, Page(studio, folder)
    names = [config.generate.model, config.decode.model, config.score.model, config.upscale.model]
    models = "  ·  ".join(name for name in names if name)
    with gr.Blocks(title="rudalle-flows", analytics_enabled=False, fill_width=True) as blocks:
        candidates = gr.State([])
        gr.HTML(f"<header>{LOGO}<h1>Try a prompt</h1><p>{html_text(models)}</p></header>")
        with gr.Row(elem_id="controls"):
            text = gr.Textbox(
                label="Prompt, in any language that the translation model supports",
                placeholder="красный круг и чёрный квадрат на белом фоне",
                lines=1,
                scale=6,
                elem_id="prompt",
                autofocus=True,
            )
            images = gr.Slider(
                1,
                MAX_CANDIDATES,
                value=min(config.generate.images, MAX_CANDIDATES),
                step=1,
                label="Candidates",
            )
            seed = gr.Number(value=config.seed, precision=0, minimum=0, label="Seed")
            draw = gr.Button("Draw", variant="primary", elem_id="draw", min_width=120)
        message = gr.HTML("", elem_id="message")
        with gr.Row(elem_id="results"):
            with gr.Column(scale=3, min_width=300):
                tiles = gr.Gallery(
                    columns=4, show_label=False, container=False, allow_preview=False,
                    object_fit="contain", height="auto", buttons=[], elem_id="tiles",
                    interactive=False, format="png",
                )  # fmt: skip
            with gr.Column(scale=2, min_width=300):
                enlarged = gr.Image(
                    show_label=False, container=False, interactive=False, elem_id="enlarged",
                    buttons=["download"], format="png",
                )  # fmt: skip
                facts = gr.HTML(SELECT, elem_id="facts")
        with gr.Row(elem_id="bulk-run"):
            with gr.Column(scale=3, min_width=300):
                gr.HTML("<h2>Prompts for a bulk run</h2>")
                kept = gr.Textbox(
                    show_label=False, placeholder="One prompt per line", lines=6, max_lines=16,
                    elem_id="kept-prompts",
                )  # fmt: skip
            with gr.Column(scale=2, min_width=300):
                keep = gr.Button("Keep this prompt", elem_id="keep")
                table = gr.DownloadButton(
                    "Download the prompt table", interactive=False, elem_id="table"
                )
                settings = gr.DownloadButton(
                    "Download the configuration", interactive=False, elem_id="settings"
                )
                instructions = gr.HTML(NO_PROMPTS, elem_id="instructions")
        for start in (draw.click, text.submit):
            start(lambda: (None, SELECT), None, [enlarged, facts], queue=False,
                  show_progress="hidden")  # fmt: skip
            start(page.draw, [text, images, seed], [tiles, candidates, message],
                  concurrency_limit=1, concurrency_id="device", show_progress="hidden")  # fmt: skip
        tiles.select(page.enlarge, [candidates], [enlarged, facts], concurrency_id="device",
                     show_progress="hidden")  # fmt: skip
        # Not queued: Gradio loses the answer to a queued event that starts while the stream of
        # the one before is closing. By default a click during the event before is dropped, too.
        keep.click(page.keep, [text, kept], [kept], queue=False, show_progress="hidden",
                   trigger_mode="multiple")  # fmt: skip
        for change in (kept.change, images.change, seed.change):
            change(page.export, [kept, images, seed], [table, settings, instructions],
                   queue=False, show_progress="hidden")  # fmt: skip
    return blocks


def serve(studio: Studio, port: int, folder: Path) -> LocalServer:
    """Start serving the page on the loopback address.

    Args:
        studio: draws the images.
        port: port to listen on; 0 for any free one.
        folder: where the files to download are written.

    Raises:
        OSError: when the port is taken.
    """
    blocks = build_page(studio, folder)
    blocks.queue(default_concurrency_limit=4, max_size=MAX_QUEUE)
    app = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        blocks,
        path="/",
        server_name=HOST,
        server_port=port,
        allowed_paths=[str(folder)],
        max_file_size=MAX_BODY,
        show_error=False,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        theme=_theme(),
        css=_style(),
    )
    server = LocalServer(app, port)
    server.start()
    return server


def _message(russian: str, state: str) -> str:
    translated = f"<p><b>{html_text(russian)}</b></p>" if russian else ""
    return f'{translated}<p role="status">{html_text(state)}</p>'


def _tiles(candidates: Sequence[Trial]) -> list[tuple[Any, str]]:
    return [(to_pil(candidate.image), _caption(candidate)) for candidate in candidates]


def _caption(candidate: Trial) -> str:
    score = f"{candidate.score:.3f}"
    return f"{score} · {candidate.rejected.replace('_', ' ')}" if candidate.rejected else score


def _verdict(candidate: Trial, undecided: Sequence[str]) -> str:
    """What a run would do with a candidate, and why."""
    if candidate.rejected:
        return f"rejected: {candidate.rejected.replace('_', ' ')} ({candidate.why})"
    if undecided:
        return f"published, unless a rule over all images rejects it: {'; '.join(undecided)}"
    return "published"


def _prompts(text: str) -> list[str]:
    """Return the prompts of a list, one per line, without duplicates and empty lines."""
    lines = (" ".join(line.split()) for line in text.splitlines())
    return list(dict.fromkeys(line for line in lines if line))


def _candidates(value: float | None) -> int:
    """Return a number of candidates; a field may be empty, and a request may hold any number."""
    return int(min(max(value or 1, 1), MAX_CANDIDATES))


def _seed(value: float | None) -> int:
    return int(min(max(value or 0, 0), 2**63 - 1))


def _theme() -> gr.themes.Base:
    """Return Gradio's base theme with local fonts; its default fonts come from a web server."""
    return gr.themes.Base(
        font=["Manrope", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
        radius_size=gr.themes.sizes.radius_none,
        primary_hue="red",
        neutral_hue="stone",
    )


def _style() -> str:
    faces = (_face(400, "Regular"), _face(600, "SemiBold"))
    return "\n".join([*faces, read_template("app.css").decode()])


def _face(weight: int, name: str) -> str:
    font = base64.b64encode(read_template(f"Manrope-{name}.ttf")).decode()
    source = f"url(data:font/ttf;base64,{font})"
    return f"@font-face {{ font-family: Manrope; font-weight: {weight}; src: {source}; }}"
