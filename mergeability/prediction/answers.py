"""Define the verdict of an analysis: whether models merge well, with which method, how certainly, and why."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

TARGET_WORDS = {"norm_acc": "of the fine-tuned accuracy", "acc": "accuracy"}


@dataclass(frozen=True)
class Forecast:
    """Hold the measured or predicted outcome of one merge method for a pair or a set of models.

    Attributes:
        method: name of the merge method.
        expected: predicted or measured outcome, in outcome units; NaN if unknown.
        low: lower end of its interval; NaN without an interval.
        high: upper end of its interval; NaN without an interval.
        source: the evidence behind it, such as `probe`, `functional` or `measured`.

    Examples:
        >>> from mergeability.prediction import Forecast
        >>> Forecast("ties", expected=0.91, low=0.87, high=0.95, source="ridge").interval
        '87% to 95%'
    """

    method: str
    expected: float
    low: float
    high: float
    source: str

    @property
    def interval(self) -> str:
        """The interval as text; an empty string if there is no interval.

        A negative lower end is shown as 0.
        """
        if self.low != self.low or self.high != self.high:
            return ""
        return f"{max(self.low, 0):.0%} to {self.high:.0%}"


@dataclass(frozen=True)
class Verdict:
    """Hold the recommended merge method for a pair or a set of models, and reasons for it.

    A verdict on an analysis is about new pairs of models like those of the analysis.

    Attributes:
        subject: the models that it is about, in words.
        target: the outcome, `norm_acc` or `acc`.
        answer: one sentence: which method, and how good.
        forecasts: one per merge method, the recommended one first.
        level: the nominal share of pairs inside the intervals, in (0, 1); NaN without intervals.
        choice: sentences on the cost of choosing a method by prediction.
        sureness: sentences on how well this evidence predicted pairs that were left out of the fit.
        reasons: sentences with the numbers behind the answer.
        next_steps: sentences on measurements that would make it more certain, and their cost.
        cautions: sentences on reasons not to rely on it.

    Examples:
        >>> from mergeability.prediction import Forecast, Verdict
        >>> forecast = Forecast("task_arithmetic", 0.91, 0.87, 0.95, "ridge")
        >>> answer = "Merge them by task_arithmetic."
        >>> verdict = Verdict("cars + dtd", "norm_acc", answer, (forecast,), level=0.9)
        >>> verdict.recommended
        'task_arithmetic'
        >>> print(verdict)
        cars + dtd
        <BLANKLINE>
        Merge them by task_arithmetic.
        <BLANKLINE>
        Normalised accuracy, interval for 90% of pairs:
        method           expected  interval    from
        task_arithmetic     91.0%  87% to 95%  ridge
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
        """The recommended method; empty if none is recommended."""
        return self.forecasts[0].method if self.forecasts else ""

    @property
    def parts(self) -> list[tuple[str, Sequence[str]]]:
        """The heading and the sentences of each non-empty part of the verdict."""
        named = [
            ("Choice of the method", self.choice),
            ("Certainty", self.sureness),
            ("Why", self.reasons),
            ("Caution", self.cautions),
            ("To be more certain", self.next_steps),
        ]
        return [(heading, sentences) for heading, sentences in named if sentences]

    @property
    def heading(self) -> str:
        """The heading of the table of methods: the outcome and the level of the intervals."""
        words = "normalised accuracy" if self.target == "norm_acc" else "accuracy"
        # NaN differs from itself: without intervals, there is no level to show.
        return words if self.level != self.level else f"{words}, interval for {self.level:.0%} of pairs"

    def __str__(self) -> str:
        """Format the verdict as plain text."""
        lines = [self.subject, "", self.answer]
        if self.forecasts:
            width = max(len(one.method) for one in self.forecasts)
            width = max(width, len("method"))
            # Without intervals, their column is left out.
            ends = max(
                len("interval") if any(one.interval for one in self.forecasts) else 0,
                *(len(one.interval) for one in self.forecasts),
            )
            rows = [("method", "expected", "interval" if ends else "", "from")]
            rows += [(one.method, _percent(one.expected), one.interval, one.source) for one in self.forecasts]
            lines += ["", f"{self.heading[0].upper()}{self.heading[1:]}:"]
            lines += [
                f"{method:<{width}}  {expected:>8}  {f'{interval:<{ends}}  ' if ends else ''}{source}".rstrip()
                for method, expected, interval, source in rows
            ]
        for heading, sentences in self.parts:
            lines += ["", f"{heading}:", *(f"- {sentence}" for sentence in sentences)]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """Show the verdict in a notebook."""
        return self.html()

    def html(self) -> str:
        """Format the verdict as HTML: the answer, the table of methods and the reasons."""
        rows = "".join(
            f"<tr><td>{escape(one.method)}</td><td>{_percent(one.expected)}</td><td>{one.interval}</td>"
            f'<td class="text">{escape(one.source)}</td></tr>'
            for one in self.forecasts
        )
        table = (
            f"<table><thead><tr><th>method</th><th>expected</th><th>interval</th>"
            f'<th class="text">based on</th></tr></thead><tbody>{rows}</tbody></table>'
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
