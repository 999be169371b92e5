"""The analysis of a ready table of pairs: prediction only."""

from mergeability.context import Run
from mergeability.errors import UserError
from mergeability.pipeline.predict import PairOutcomes, predict_table
from mergeability.pipeline.request import Request
from mergeability.pipeline.result import Analysis
from mergeability.pipeline.suites import TableSuite
from mergeability.prediction.pair_table import outcome_methods


def analyse_table(suite: TableSuite, request: Request, run: Run) -> Analysis:
    """Predict the outcomes that a table has from its metrics.

    Raises:
        UserError: the table lacks the metrics or the methods asked for, or cannot be predicted from.
    """
    pairs = suite.read()
    names = list(suite.metrics or [name for name in request.metrics if name in pairs.columns])
    if not names:
        raise UserError(
            f"{suite.table} has none of the metrics asked for. Name its columns in suite.metrics=[…]."
        )
    found = outcome_methods(pairs)
    absent = [method for method in suite.methods or () if method not in found]
    if absent:
        raise UserError(
            f"{suite.table} has no outcomes of {', '.join(absent)}; it has those of {', '.join(found) or 'no method'}."
        )
    methods = list(suite.methods or found)
    predicted = predict_table(PairOutcomes(pairs, names, methods), suite.rows, request, run)
    return Analysis(
        title=f"Mergeability of {suite.name}",
        pairs=predicted.pairs,
        metrics=names,
        methods=methods,
        prediction=predicted.study,
        fitted=predicted.fitted,
    )
