"""Figures of an evaluation as tables of Markdown."""

from typing import Any

from cm3.tokens.templates import LANGUAGES
from train.evaluation.task_cases import WRONG
from train.scenes.tasks import EDITS


def _accuracy(row: dict[str, float] | None) -> str:
    return f"{row['accuracy']:.1%} (majority {row['majority']:.1%})" if row else ""


def concept_table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        "| split | images | PSNR | SSIM | codes used | caption en | caption ar | questions | majority |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for split, row in result["splits"].items():
        rec, cap, ask = row["reconstruction"], row["captions"], row["answers"]
        cells = [f"{rec['images']}", f"{rec['psnr']:.2f} dB", f"{rec['ssim']:.3f}", f"{rec['codebook_usage']:.1%}"]
        cells += [
            f"{value:.1%}" for value in (cap["en"]["exact"], cap["ar"]["exact"], ask["accuracy"], ask["majority"])
        ]
        lines.append(f"| {split} | " + " | ".join(cells) + " |")
    lines += _drawing_lines(result["drawings"])
    tasks = {split: row["answers"]["tasks"] for split, row in result["splits"].items()}
    lines += ["", "| question | " + " | ".join(tasks) + " |", "|---|" + "---|" * len(tasks)]
    for task in next(iter(tasks.values())):
        cells = [_accuracy(rows.get(task)) for rows in tasks.values()]
        lines.append(f"| {LABELS.get(task, task)} | " + " | ".join(cells) + " |")
    use = result["codebook_usage_test"]
    lines += ["", f"Codes used on the whole test split ({use['images']} images): {use['share']:.1%}", ""]
    return "\n".join(lines)


def _drawing_lines(drawings: dict[str, Any]) -> list[str]:
    """A row for each way to ask, with the top-1 and top-5 of each judge."""
    rows = {name: row for name, row in drawings.items() if isinstance(row, dict)}
    judges = [name for name, value in next(iter(rows.values())).items() if isinstance(value, dict)]
    columns = [f"{judge}, {figure}" for judge in judges for figure in ("top-1", "top-5")]
    among = f"judged among {drawings['concepts']} concepts"
    if (best_of := drawings.get("best_of", 1)) > 1:
        among += f", each drawing the best of {best_of}"
    lines = [
        "",
        f"| {among} | images | {' | '.join(columns)} | memorisation rate |",
        "|---" * (len(columns) + 3) + "|",
    ]
    for name, row in rows.items():
        shares = [percent(row[judge][figure]) for judge in judges for figure in ("top1", "top5")]
        lines.append(f"| {name} | {row['images']} | {' | '.join(shares)} | {percent(row.get('near copies'))} |")
    return lines


MAPS = ("segments", "edges")
LABELS = {"ground": "background"}  # of tasks, where the table says it otherwise


def percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def task_table(result: dict[str, Any]) -> str:
    """Return the result as Markdown, each figure beside its baselines and its ceiling."""
    splits, lines = result["splits"], []
    columns = [(split, language) for split in splits for language in LANGUAGES]
    lines += [
        "| question | " + " | ".join(f"{split}, {language}" for split, language in columns) + " |",
        "|---" * (1 + len(columns)) + "|",
    ]
    for task in dict.fromkeys(task for rows in splits.values() for task in rows["answers"]):
        found = [splits[split]["answers"].get(task, {}).get(language) for split, language in columns]
        cells = [
            f"{percent(row['accuracy'])} (majority {percent(row['majority'])}, n = {row['questions']})" if row else ""
            for row in found
        ]
        lines.append(f"| {LABELS.get(task, task)} | " + " | ".join(cells) + " |")
    for title, chosen, figures in (
        ("edit", EDITS, ("kept", "changed", "right", "top5")),
        ("boxes", ("grounded",), ("iou", "thing", "both")),
        ("map", MAPS, ("iou",)),
        ("sign", ("write sign",), ("top1", "top5")),
    ):
        lines += ["", f"| split | {title} | n | | " + " | ".join(figures) + " |", "|---" * (4 + len(figures)) + "|"]
        for split, rows in splits.items():
            for task in (task for task in chosen if task in rows):
                lines += [
                    f"| {split} | {LABELS.get(task, task)} | {rows[task]['documents']} | {name} | "
                    + " | ".join(percent(row[figure]) for figure in figures)
                    + " |"
                    for name, row in rows[task].items()
                    if name != "documents"
                ]
    holes = result["holes"]
    lines += ["", f"| holes | n | judged among {holes['concepts']} concepts | PSNR | top5 |", "|---|---|---|---|---|"]
    for split, rows in ((split, rows) for split, rows in holes.items() if split != "concepts"):
        lines += [
            f"| {split} | {rows['images']} | {name} | {row['psnr']:.2f} dB | {percent(row['top5'])} |"
            for name, row in rows.items()
            if name != "images"
        ]
    lines += [
        "",
        f"An edit is right where it is nearer to the truth than to its source and {WRONG} wrong targets. "
        "The thing in a box is right where it is among the five nearest of all things. "
        f"{result['held-out images of objects']} images of held-out pairs are of the {result['objects']} objects of "
        "scenes: each scene of that split has one of them, beside images from training.",
        "",
    ]
    return "\n".join(lines)
