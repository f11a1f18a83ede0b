"""A page to try prompts: type one, watch candidates come in by rank, enlarge one, keep the prompt.

The prompts that are kept leave the page as a prompt table and a configuration for `rudalle-flows
run`, which draws the very pictures that were seen here. The page listens on this machine alone and
asks no other one for anything: its font is the packaged one, and Gradio's reports are off.
"""

from __future__ import annotations

import base64
import csv
import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import yaml

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import gradio as gr

from flows.progress import counted
from rudalle_lib.config import RunConfig
from rudalle_lib.errors import RudalleError
from rudalle_lib.images import to_pil
from rudalle_lib.studio import Candidate, Studio
from rudalle_lib.templating import read_template

HOST = "127.0.0.1"
"""Nobody else may use this machine's devices."""

MOST = 64
"""Candidates of one prompt, at most."""

MARK = (
    '<svg viewBox="0 0 112 56" aria-hidden="true">'
    '<rect width="56" height="56" fill="currentColor"/>'
    '<path d="M71 20 101 26 95 55 65 49Z" fill="#d42a1e"/></svg>'
)


def prompt_table(prompts: Sequence[str]) -> str:
    """The prompt table of a bulk run, as CSV."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["prompt"])
    rows.writerows([prompt] for prompt in prompts)
    return text.getvalue()


def run_configuration(config: RunConfig, images: int, seed: int) -> str:
    """The configuration of a bulk run that draws what was seen on the page, as YAML."""
    data = config.model_dump(mode="json", exclude_defaults=True)
    data["seed"] = seed
    data["prompts"] = {"uri": "prompts.csv"}
    data["generate"] = {**data.get("generate", {}), "images": images}
    head = "# From the page that tries prompts: rudalle-flows run run.yaml\n"
    return head + yaml.safe_dump(data, allow_unicode=True, sort_keys=False)


class Page:
    """What the page does, for one studio; nothing here knows how it looks."""

    def __init__(self, studio: Studio, folder: Path) -> None:
        self._studio = studio
        self._folder = folder

    def draw(self, text: str, images: float, seed: float) -> Iterator[tuple[Any, ...]]:
        """Candidates as they come, with what is said about them."""
        try:
            prompt = self._studio.read(text)
            russian = "" if prompt.text == prompt.text_ru else prompt.text_ru
            count = int(images)
            yield [], [], _said(russian, f"drawing the first of {count} candidates")
            for found in self._studio.draw(prompt, count, int(seed)):
                state = f"{len(found)} of {count} candidates, the best first"
                yield _tiles(found), found, _said(russian, state)
        except RudalleError as error:
            yield [], [], f'<p class="wrong" role="alert">{escape(str(error))}</p>'

    def enlarge(self, found: Sequence[Candidate], event: gr.SelectData) -> tuple[Any, str]:
        """The chosen candidate as a run would publish it, and what is known of it."""
        chosen = found[event.index]
        picture = to_pil(self._studio.enlarge(chosen.picture))
        verdict = f"not published: {chosen.rejected}" if chosen.rejected else "published"
        facts = [
            ("score", f"{chosen.score:.3f}"),
            ("place", f"{event.index + 1} of {len(found)}"),
            ("in a run", verdict.replace("_", " ")),
            ("size", f"{picture.width} × {picture.height}"),
            ("image id", chosen.image_id),
        ]
        rows = "".join(f"<div><dt>{n}</dt><dd>{escape(v)}</dd></div>" for n, v in facts)
        return picture, f"<dl>{rows}</dl>"

    def keep(self, text: str, rows: list[list[str]]) -> list[list[str]]:
        """The list with a prompt at its end, unless it is there already."""
        kept = _texts(rows)
        new = " ".join(text.split())
        return [[prompt] for prompt in (kept if not new or new in kept else [*kept, new])]

    def hand_over(self, rows: list[list[str]], images: float, seed: float) -> tuple[Any, Any, str]:
        """The files of a bulk run, and how to start it."""
        kept = _texts(rows)
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        table, config = folder / "prompts.csv", folder / "run.yaml"
        table.write_text(prompt_table(kept), encoding="utf-8")
        settings = run_configuration(self._studio.config, int(images), int(seed))
        config.write_text(settings, encoding="utf-8")
        pictures = (
            f"{counted(len(kept), 'prompt')}, {counted(len(kept) * int(images), 'candidate')}"
        )
        said = f"<p>{pictures}. Put both files into a folder, and there:</p>"
        said += "<code>rudalle-flows run run.yaml</code>"
        some = bool(kept)
        return (
            gr.update(value=str(table), interactive=some),
            gr.update(value=str(config), interactive=some),
            said if some else "<p>No prompt is kept yet.</p>",
        )


def build_page(studio: Studio, folder: Path) -> gr.Blocks:
    """The page; files that are handed over are written below the folder."""
    config, page = studio.config, Page(studio, folder)
    names = [config.generate.model, config.decode.model, config.score.model, config.upscale.model]
    models = "  ·  ".join(name for name in names if name)
    with gr.Blocks(title="rudalle-flows", analytics_enabled=False, fill_width=True) as blocks:
        found = gr.State([])
        gr.HTML(f"<header>{MARK}<h1>Try a prompt</h1><p>{escape(models)}</p></header>")
        with gr.Row(elem_id="ask"):
            text = gr.Textbox(
                label="Prompt, in any language that the translator knows",
                placeholder="красный круг и чёрный квадрат на белом фоне",
                lines=1,
                scale=6,
                elem_id="prompt",
                autofocus=True,
            )
            images = gr.Slider(
                1, MOST, value=min(config.generate.images, MOST), step=1, label="Candidates"
            )
            seed = gr.Number(value=config.seed, precision=0, minimum=0, label="Seed")
            draw = gr.Button("Draw", variant="primary", elem_id="draw", min_width=120)
        said = gr.HTML("", elem_id="said")
        with gr.Row(elem_id="seen"):
            with gr.Column(scale=3, min_width=300):
                tiles = gr.Gallery(
                    columns=4, show_label=False, container=False, allow_preview=False,
                    object_fit="contain", height="auto", buttons=[], elem_id="tiles",
                    interactive=False, format="png",
                )  # fmt: skip
            with gr.Column(scale=2, min_width=300):
                large = gr.Image(
                    show_label=False, container=False, interactive=False, elem_id="large",
                    buttons=["download"], format="png",
                )  # fmt: skip
                facts = gr.HTML(
                    "<p>Choose a candidate to see it as large as a run would publish it.</p>",
                    elem_id="facts",
                )
        with gr.Row(elem_id="list"):
            with gr.Column(scale=3, min_width=300):
                gr.HTML("<h2>For a bulk run</h2>")
                rows = gr.Dataframe(
                    headers=["prompt"], column_count=1, type="array", interactive=True,
                    show_label=False, wrap=True, buttons=[], elem_id="kept",
                )  # fmt: skip
            with gr.Column(scale=2, min_width=300):
                keep = gr.Button("Keep this prompt", elem_id="keep")
                table = gr.DownloadButton(
                    "Download the prompt table", interactive=False, elem_id="table"
                )
                settings = gr.DownloadButton(
                    "Download the configuration", interactive=False, elem_id="settings"
                )
                how = gr.HTML("<p>No prompt is kept yet.</p>", elem_id="how")
        asked = ([text, images, seed], [tiles, found, said])
        for start in (draw.click, text.submit):
            start(page.draw, *asked, concurrency_limit=1, concurrency_id="device",
                  show_progress="hidden")  # fmt: skip
        tiles.select(page.enlarge, [found], [large, facts], concurrency_id="device",
                     show_progress="hidden")  # fmt: skip
        keep.click(page.keep, [text, rows], [rows], show_progress="hidden")
        handed = ([rows, images, seed], [table, settings, how])
        for change in (rows.change, images.change, seed.change):
            change(page.hand_over, *handed, show_progress="hidden")
    return blocks


def serve(studio: Studio, port: int, folder: Path, wait: bool = True) -> gr.Blocks:
    """Show the page on this machine, until interrupted if `wait`; no other machine reaches it."""
    blocks = build_page(studio, folder)
    blocks.queue(default_concurrency_limit=4).launch(
        server_name=HOST,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=not wait,
        allowed_paths=[str(folder)],
        footer_links=[],
        ssr_mode=False,
        theme=_theme(),
        css=_style(),
    )
    return blocks


def _said(russian: str, state: str) -> str:
    translated = f"<p><b>{escape(russian)}</b></p>" if russian else ""
    return f'{translated}<p role="status">{escape(state)}</p>'


def _tiles(found: Sequence[Candidate]) -> list[tuple[Any, str]]:
    return [
        (
            to_pil(one.picture),
            f"{one.score:.3f}" + (f" · {one.rejected.replace('_', ' ')}" if one.rejected else ""),
        )
        for one in found
    ]


def _texts(rows: Sequence[Sequence[Any]]) -> list[str]:
    """The prompts of the list, each once, without empty rows."""
    texts = (" ".join(str(row[0] or "").split()) for row in rows if row)
    return list(dict.fromkeys(text for text in texts if text))


def _theme() -> gr.themes.Base:
    """Gradio's plainest, with fonts by name: its defaults come from a server of fonts."""
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
