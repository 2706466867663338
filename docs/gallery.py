"""Write docs/gallery.md and its pictures: ``python docs/gallery.py``, a minute or two.

``docs/generate.py`` writes the page again, without the pictures, from the measurements in results/.
"""

from pathlib import Path

from hbench.evaluation.attributes.result import Attributes
from hbench.evaluation.explore import facts_of
from hbench.evaluation.sampling import choose_x_T
from hbench.store.run import Run, load_run
from hbench.store.shipped import shipped_runs

DOCS = Path(__file__).parent
PICTURES = DOCS / "gallery"
BEST, EXAMPLES, MAGNITUDES = 6, 6, 21
"""Good directions of each run, samples and magnitudes of each animation."""

HEAD = """# Gallery

The directions of the two runs that hbench ships, in motion: each moves from s = -S to S and back, on the first samples
of seed 0. They are chosen by a rule, not by eye. *Good* are the visible directions with an effect that passes, one of
each cluster of alike ones, the most specific first, at most six. *What goes wrong* are the visible one along which the
fewest samples keep their classes, and of those that nobody sees the one that changes images most. Effects are at s = S,
in natural standard deviations with 95 % intervals; the numbers are those of `attributes.json` in `results/`, and the
[glossary](glossary.md) explains the terms. A bold name was given by eye where somebody did. `hbench explore RUN`
makes a page in which you move them yourself.
"""


def page() -> str:
    """Return the text of docs/gallery.md."""
    parts = [HEAD]
    for name in shipped_runs():
        run, found = load_run(name, device="cpu"), measured(name)
        parts.append(f"## {name}\n\n{found.brief}; effective rank {found.effective_rank:.1f}.\n")
        parts += [_entry(name, run, found, k) for k in found.best[:BEST]]
        if wrong := failures(found):
            parts.append("### What goes wrong\n")
            parts += [f"{reason}\n\n{_entry(name, run, found, k)}" for k, reason in wrong.items()]
    return "\n".join(parts)


def measured(name: str) -> Attributes:
    """Return what was measured of a shipped run."""
    return Attributes.load(DOCS.parent / "results" / name / "attributes")


def failures(found: Attributes) -> dict[int, str]:
    """Return the directions that show what goes wrong, with the reason of each."""
    seen = [each for each in found.directions if each.visible]
    hidden = [each for each in found.directions if not each.visible]
    wrong = {}
    if seen:
        each = min(seen, key=lambda each: each.kept[-1])
        wrong[each.direction] = f"The fewest samples keep their classes along direction {each.direction}:"
    if hidden:
        each = max(hidden, key=lambda each: each.visible_change)
        wrong[each.direction] = (
            f"{len(hidden)} of {len(found.directions)} directions change nothing that a person would see; of these, "
            f"direction {each.direction} changes images most:"
        )
    return wrong


def _entry(name: str, run: Run, found: Attributes, k: int) -> str:
    facts = facts_of(run, k, found)
    title = f"**{k}: {facts.name or facts.proposed or 'no name'}**"
    lines = [
        f'by its effects "{facts.proposed}"' if facts.name and facts.proposed else "",
        f"effect: {facts.effect}" if facts.effect else "no effect that passes",
        f"also: {facts.also}" if facts.also else "",
        f"classes kept at S: {facts.kept}" if facts.kept else "",
        f"`hbench traverse {name} --direction {k} --animate`",
    ]
    text = "; ".join(line for line in lines if line)
    return f"{title}  \n{text}\n\n![Samples of {name} along direction {k}]({_picture(name, k).relative_to(DOCS)})\n"


def _picture(name: str, k: int) -> Path:
    return PICTURES / f"{name}-{k}.webp"


def main() -> None:
    """Write the page and its pictures, and remove pictures that are not on it."""
    PICTURES.mkdir(exist_ok=True)
    wanted = set()
    for name in shipped_runs():
        run, found = load_run(name, device="cpu"), measured(name)
        rows = choose_x_T(run, EXAMPLES, 0).indices
        for k in {*found.best[:BEST], *failures(found)}:
            wanted.add(_picture(name, k))
            run.traverse([k], examples=rows, samples=MAGNITUDES, seed=0).animate(_picture(name, k))
    for old in PICTURES.glob("*.webp"):
        if old not in wanted:
            old.unlink()
    (DOCS / "gallery.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
