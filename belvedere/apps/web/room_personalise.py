"""The room in which a thing of yours is learned from a few photographs, and shown in whatever prompt."""

from collections.abc import Iterator
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from belvedere.apps.web import cards, concept_results, turns
from belvedere.apps.web.concept_results import PICTURE, ROOM
from belvedere.apps.web.curve import loss_curve
from belvedere.apps.web.learning import BASES, Classroom, classroom_of
from belvedere.apps.web.lesson import Progress
from belvedere.apps.web.pictures import data_uri, reduced
from belvedere.apps.web.running import Tell, in_words
from belvedere.apps.web.strip import strip, when
from belvedere.apps.web.studio import ASIDE, BUSY, QUICK, RAW, Studio

BEAT = 2.0
"""Seconds between two looks at a lesson."""
SHEETS = 3
"""The newest that are shown."""
STEPS = 400
NO_MODEL = cards.empty(
    "No model here",
    "Start the studio with --model NAME=FOLDER, a Stable Diffusion model, to teach it a thing of yours.",
)
EMPTY = cards.empty(
    "Nothing learned yet",
    "Drop three to six photographs of one thing, say what it is, and press Learn. You then watch it being learned.",
)
NO_PICTURES = cards.empty("No pictures yet", "Keep what was learned, then write a prompt that holds its word.")
WORDS = {
    "learning": "Learning",
    "stopped": "Stopped; Go on continues where it was",
    "learned": "Learned; Keep puts it on the shelf",
    "failed": "It could not be learned",
}


def build(studio: Studio, page: gr.Blocks) -> None:
    """Fill the tab."""
    bases = studio.offered(*BASES)
    if not bases:
        gr.HTML(NO_MODEL)
        return
    lesson = gr.Textbox(visible=False, label="lesson")
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            photographs = gr.File(
                label="Photographs of one thing", type="filepath", file_count="multiple", height=150,
                file_types=[".png", ".jpg", ".jpeg", ".webp"], elem_id="lesson-photographs",
            )  # fmt: skip
            with gr.Row():
                token = gr.Textbox("<thing>", label="Its word", info="A word that nothing else has.", min_width=120)
                like = gr.Textbox("car", label="What it is", info="One common word.", min_width=120)
            base = gr.Dropdown(bases, value=bases[0], label="Base model", visible=len(bases) > 1)
            most = studio.limits.learning_steps
            steps = gr.Slider(
                1,
                most,
                value=min(STEPS, most),
                step=1,
                label="Steps",
                info="More learn it closer.",
                elem_id="lesson-steps",
            )
            with gr.Row():
                stop = gr.Button("Stop", min_width=70, visible=False)
                more = gr.Button("Go on", min_width=70, visible=False)
                learn = gr.Button("Learn", variant="primary", min_width=110)
            old = gr.HTML(js_on_load=cards.USE, elem_id="lessons", apply_default_css=False)
        with gr.Column(scale=3, min_width=320):
            told = gr.HTML(EMPTY, elem_id="lesson", apply_default_css=False)
            keep = gr.Button("Keep", variant="primary", visible=False)
    gr.Markdown("### Try it")
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            asked = _prompt(studio)
            with gr.Row():
                halt = gr.Button("Stop", min_width=80, scale=1)
                make = gr.Button("Make", variant="primary", min_width=120, scale=3, elem_id="try-concept")
        with gr.Column(scale=3, min_width=320):
            made = gr.HTML(NO_PICTURES, elem_id="concept-pictures", apply_default_css=False)
    inputs = [photographs, token, like, base, steps]
    _learning_events(studio, page, lesson, inputs, (learn, stop, more, keep), told, old, asked[0], made)
    _trying_events(studio, page, asked, make, halt, made)


def _prompt(studio: Studio) -> list[Any]:
    """Return what a picture is made of: concept, prompt, editability, count, seed, steps."""
    concept = gr.Dropdown([], label="Concept", info="What was kept.", interactive=True)
    prompt = gr.Textbox("a photo of a <thing> on grass", label="Prompt", lines=2)
    editability = gr.Slider(
        0, 1, value=0, step=0.05, label="Editability", info="0 is most like the photographs, 1 follows the prompt most."
    )
    with gr.Row():
        count = gr.Slider(1, min(8, studio.limits.count), value=4, step=1, label="How many", min_width=120)
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=90)
    steps = gr.Slider(1, 100, value=25, step=1, label="Sampler steps", elem_id="try-steps")
    return [concept, prompt, editability, count, seed, steps]


def _learning_events(
    studio: Studio, page: gr.Blocks, lesson: Any, inputs: list[Any], buttons: tuple[Any, ...], told: Any, old: Any,
    concept: Any, made: Any,
) -> None:  # fmt: skip
    """Say what happens to lessons; the timer looks at one only while it is learned."""
    classroom = classroom_of(studio)
    learn, stop, more, keep = buttons
    timer = gr.Timer(BEAT, active=False)
    seen = [told, timer, stop, more, keep]

    def begin(photographs: list[str] | None, token: str, like: str, base: str, steps: float) -> str:
        return studio.runner.result(
            ROOM, lambda tell: classroom.begin(photographs or [], token, like, base, int(steps)), what="began a lesson"
        )

    def look(lesson: str) -> tuple[Any, ...]:
        """Return what is shown of a lesson, whether it is to be looked at again, and which buttons it has."""
        if not lesson:
            return EMPTY, gr.update(active=False), *[gr.update(visible=False)] * 3
        with in_words():
            found = classroom.look(lesson)
            shown = lesson_shown(found)
        buttons = (found.status == "learning", found.status in ("stopped", "failed"), found.status == "learned")
        return shown, gr.update(active=buttons[0]), *(gr.update(visible=there) for there in buttons)

    def end(lesson: str) -> None:
        """Tell a lesson to write a checkpoint and stop."""
        with in_words():
            classroom.stop(lesson)

    def go_on(lesson: str) -> None:
        """Go on with a lesson from its checkpoint."""
        with in_words():
            classroom.go_on(lesson)

    def take(lesson: str) -> Any:
        """Put what was learned on the shelf and choose it."""
        with in_words():
            return _choices(studio, concept_results.keep(studio, classroom, lesson))

    def recall(lesson: str) -> list[Any]:
        """Return what a lesson was begun with: word, what it is, base and steps; what is there where there is none."""
        if not lesson:
            return [gr.skip()] * 4
        with in_words():
            found = classroom.lesson(lesson)
        base = found.base if found.base in studio.offered(*BASES) else gr.skip()
        return [found.token, found.like, base, min(found.steps, studio.limits.learning_steps)]

    def chosen(event: gr.SelectData) -> str:
        return str(event.value)

    asking = turns.in_turn(learn.click, studio, page, told)
    begun = asking.then(begin, inputs, lesson, api_name="personalise_begin", **BUSY)
    begun.success(look, lesson, seen, api_name="personalise_look", **QUICK)
    begun.failure(look, lesson, seen, api_visibility="private", **QUICK)
    stop.click(end, lesson, None, api_name="personalise_stop", **ASIDE).success(
        look, lesson, seen, api_visibility="private", **QUICK
    )
    more.click(go_on, lesson, None, api_name="personalise_go_on", **ASIDE).success(
        look, lesson, seen, api_visibility="private", **QUICK
    )
    kept = keep.click(take, lesson, concept, api_name="personalise_keep", **ASIDE)
    kept.success(lambda: _pictures(studio), None, made, api_visibility="private", **QUICK)
    timer.tick(look, lesson, seen, api_visibility="private", **QUICK)
    found = page.load(classroom.newest, None, lesson, api_name="personalise_newest", **QUICK)
    found.then(recall, lesson, inputs[1:], api_name="personalise_recall", **ASIDE)
    taken = old.select(chosen, None, lesson, api_visibility="private", **QUICK)
    taken.then(recall, lesson, inputs[1:], api_visibility="private", **ASIDE)
    for opened in (found, taken):
        opened.then(look, lesson, seen, api_visibility="private", **QUICK)
    page.load(lambda: _lessons(classroom), None, old, api_name="personalise_lessons", **QUICK)
    begun.success(lambda: _lessons(classroom), None, old, api_visibility="private", **QUICK)
    page.load(lambda: _choices(studio), None, concept, api_name="personalise_concepts", **QUICK)


def _trying_events(studio: Studio, page: gr.Blocks, asked: list[Any], make: Any, halt: Any, made: Any) -> None:
    def try_prompt(
        concept: str, prompt: str, editability: float, count: float, seed: float | None, steps: float
    ) -> Iterator[str]:
        """Make pictures of a prompt that holds a kept concept."""

        def work(tell: Tell) -> list[str]:
            numbers = float(editability), int(count), int(seed or 0), int(steps)
            return concept_results.make(studio, concept, str(prompt or ""), *numbers, tell)

        for news in studio.runner.run(ROOM, work, what=f"{int(count)} pictures of a concept"):
            if not isinstance(news, list):
                done, total, _ = news or (0, int(count), ())
                yield cards.progress(done / total, f"{done:.1f} of {total} done") + _pictures(studio)
        yield _pictures(studio)

    def written(concept: str, prompt: str) -> str:
        """Return the prompt with the word of the chosen concept."""
        if not concept:
            return prompt
        with in_words():
            token = str(studio.shelf.entry(concept).facts["token"])
        return prompt if token in prompt else f"a photo of a {token}"

    asking = turns.in_turn(make.click, studio, page, made)
    run = asking.then(try_prompt, asked, made, api_name="personalise_try", **RAW)
    turns.redrawn(halt, [run], lambda: _pictures(studio), None, made)
    asked[0].change(written, asked[:2], asked[1], api_visibility="private", **ASIDE)
    page.load(lambda: _pictures(studio), None, made, api_name="personalise_pictures", **QUICK)


def _lessons(classroom: Classroom) -> str:
    """Return all lessons, the newest first, "" when there is none."""
    told = [(id, classroom.lesson(id)) for id in classroom.ids()]
    each = [(id, _photograph(classroom.folder / id), f"{one.token}, {when(one.when)}") for id, one in told]
    return f"<h3>Earlier lessons</h3>{strip(each)}" if each else ""


@lru_cache(64)
def _photograph(lesson: Path) -> str:
    """Return the first photograph of a lesson's folder, small, as an address; "" where it is gone."""
    from PIL import Image

    try:
        with Image.open(lesson / "photographs" / "00.png", formats=("PNG",)) as image:
            return data_uri(reduced(image, 168))
    except OSError:
        return ""


def _choices(studio: Studio, chosen: str | None = None) -> Any:
    """Return the update of the list of concepts."""
    found = concept_results.concepts(studio)
    listed = [
        (f"{entry.facts['token']}, like {entry.facts['like']}, {entry.facts['steps']} steps", entry.id)
        for entry in found
    ]
    return gr.update(choices=listed, value=chosen or (listed[0][1] if listed else None))


def _pictures(studio: Studio) -> str:
    """Return the newest pictures, and the concepts to download."""
    links = "".join(
        f'<a class="bv-link" href="{studio.url(entry.id, concept_results.name_of(entry))}" download>'
        f"Download {escape(str(entry.facts['token']))}</a>"
        for entry in concept_results.concepts(studio)[:4]
    )
    found = concept_results.pictures(studio, 12)
    each = (
        cards.result(
            studio,
            entry,
            title=str(entry.facts["prompt"]),
            shown=PICTURE,
            note=f"editability {entry.facts['editability']:g}, seed {entry.facts['seed']}",
        )
        for entry in found
    )
    return (f"<p>{links}</p>" if links else "") + (cards.cards(each) if found else NO_PICTURES)


def lesson_shown(found: Progress) -> str:
    """Return how far a lesson is: words, a bar, the curve of the loss, the newest sheets."""
    lesson, steps = found.lesson, found.lesson.steps
    left = f", about {found.seconds_left:.0f} s left" if found.status == "learning" and found.seconds_left else ""
    first = ": opening the model" if found.status == "learning" and not found.step else ""
    head = f"{WORDS[found.status]}{first}. {lesson.token}, like {lesson.like}: step {found.step} of {steps}{left}"
    fault = f'<p class="bv-fault">{escape(found.fault)}</p>' if found.fault else ""
    loss = f"<small>Loss {found.losses[-1][1]:.4f}</small>" if found.losses else ""
    sheets = cards.cards(_sheet(found, i) for i in range(len(found.sheets))[-SHEETS:])
    bar = cards.progress(found.step / steps, head, busy=found.status == "learning")
    return f'<div class="bv-large">{bar}{fault}{loss}{loss_curve(found.losses, steps)}{sheets}</div>'


def _sheet(found: Progress, index: int) -> str:
    from PIL import Image

    with Image.open(found.sheets[index], formats=("PNG",)) as image:
        small = reduced(image, 480)
    step = int(found.sheets[index].stem.removeprefix("step-"))
    note = f"likeness {found.likeness[step]:.2f}" if step in found.likeness else ""
    return cards.card(data_uri(small), f"Step {step}", note, small=True)
