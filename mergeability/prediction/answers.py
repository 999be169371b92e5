"""The answer to the question of this package: will these models merge well, by which method, how surely, and why."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

TARGET_WORDS = {"norm_acc": "of the fine-tuned accuracy", "acc": "accuracy"}


@dataclass(frozen=True)
class Forecast:
    """The outcome of one merge method.

    Attributes:
        method: its name.
        expected: predicted or measured outcome, in outcome units; NaN where it is unknown.
        low: lower end of its interval; NaN without one.
        high: upper end.
        source: what it rests on, such as `probe`, `functional` or `measured`.
    """

    method: str
    expected: float
    low: float
    high: float
    source: str

    @property
    def interval(self) -> str:
        """The interval in words, an empty text without one; shares end at 0."""
        if self.low != self.low or self.high != self.high:
            return ""
        return f"{max(self.low, 0):.0%} to {self.high:.0%}"


@dataclass(frozen=True)
class Verdict:
    """An answer for a pair or a set of models, or for new pairs of models like those of an analysis.

    Attributes:
        subject: whom it is about, in words.
        target: the outcome, `norm_acc` or `acc`.
        answer: one sentence: which method, and how good.
        forecasts: one per merge method, the recommended one first.
        level: the share of pairs that the intervals are meant to hold; NaN without intervals.
        choice: sentences on what the choice of the method costs.
        sureness: sentences on how this evidence did on pairs it had not seen.
        reasons: sentences with the numbers that the answer rests on.
        next_steps: sentences on what would make it surer, and at which cost.
        cautions: sentences on what speaks against relying on it.
    """

    subject: str
    target: str
    answer: str
    forecasts: tuple[Forecast, ...] = ()
    level: float = float("nan")
    choice: tuple[str, ...] = ()
    sureness: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    next_steps: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()

    @property
    def recommended(self) -> str:
        """The method to take; empty where none is recommended."""
        return self.forecasts[0].method if self.forecasts else ""

    @property
    def parts(self) -> list[tuple[str, Sequence[str]]]:
        """Headings and sentences, in reading order; parts without sentences are left out."""
        named = [
            ("Choice of the method", self.choice),
            ("How sure", self.sureness),
            ("Why", self.reasons),
            ("Caution", self.cautions),
            ("To be surer", self.next_steps),
        ]
        return [(heading, sentences) for heading, sentences in named if sentences]

    @property
    def heading(self) -> str:
        """What the numbers of the forecasts are."""
        words = "normalised accuracy" if self.target == "norm_acc" else "accuracy"
        # Levels such as 0.9 are exact only as far as people write them.
        return words if self.level != self.level else f"{words}, interval for {self.level:.0%} of pairs"

    def __str__(self) -> str:
        """Write the verdict as plain text."""
        lines = [self.subject, "", self.answer]
        if self.forecasts:
            width = max(len(one.method) for one in self.forecasts)
            lines += ["", f"{'method':<{width}}  {self.heading}"]
            lines += [
                f"{one.method:<{width}}  {_percent(one.expected):>6}  {one.interval:<15} {one.source}".rstrip()
                for one in self.forecasts
            ]
        for heading, sentences in self.parts:
            lines += ["", f"{heading}:", *(f"- {sentence}" for sentence in sentences)]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """Show the verdict in a notebook."""
        return self.html()

    def html(self) -> str:
        """Set the verdict as HTML: the answer, the table of methods, the reasons."""
        rows = "".join(
            f"<tr><td>{escape(one.method)}</td><td>{_percent(one.expected)}</td><td>{one.interval}</td>"
            f'<td class="text">{escape(one.source)}</td></tr>'
            for one in self.forecasts
        )
        table = (
            f"<table><thead><tr><th>method</th><th>expected</th><th>interval</th>"
            f'<th class="text">rests on</th></tr></thead><tbody>{rows}</tbody></table>'
            f'<p class="note">{escape(self.heading[0].upper() + self.heading[1:])}.</p>'
        )
        parts = "".join(
            f"<div><h3>{escape(heading)}</h3><ul>{''.join(f'<li>{escape(one)}</li>' for one in sentences)}</ul></div>"
            for heading, sentences in self.parts
        )
        return (
            f'<div class="verdict"><p class="subject">{escape(self.subject)}</p>'
            f'<p class="answer">{escape(self.answer)}</p>{table if rows else ""}<div class="parts">{parts}</div></div>'
        )


def _percent(value: float) -> str:
    return "–" if value != value else f"{value:.1%}"
