"""Compositions of classifiers: stacking, voting, bagging, and a pipeline that ends in a classifier."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpmmu_rt.spec import Array

from .families import (
    DECISIONS,
    LABELS,
    PROBABILITIES,
    STACKED,
    Translate,
    decision,
    label,
    label_by_probability,
    probability,
    refuse,
    respond,
    transform,
)
from .ir import Above, Forest, Node, Sum, Trees, concat, mean, select

_COUNTED = 10  # hard votes of which every outcome is written down


def names(ensemble: Any, path: str) -> list[str]:
    """The name of each fitted learner. One that was dropped after the fit still answers in scikit-learn, so the names
    are those of the fit."""
    given = getattr(ensemble, "named_estimators_", None)
    pairs = ensemble.estimators if given is None else given.items()
    found = [name for name, one in pairs if not (isinstance(one, str) and one == "drop")]
    if len(found) != len(ensemble.estimators_):
        refuse(
            ensemble,
            path,
            f"of {len(found)} names for {len(ensemble.estimators_)} fitted learners, expected as many",
            hint="fit it again after its learners were changed",
        )
    return found


def learners(stack: Any, x: Node, path: str) -> tuple[Node, ...]:
    """What each base learner of a StackingClassifier contributes, [N, 1] each, in its order."""
    named = names(stack, path)
    if len(stack.stack_method_) != len(named):
        refuse(
            stack,
            path,
            f"of {len(stack.stack_method_)} methods for {len(named)} fitted learners, expected as many",
            hint="fit it again after its learners were changed",
        )
    return tuple(
        respond(estimator, x, f"{path}.{name}", method)
        for name, estimator, method in zip(named, stack.estimators_, stack.stack_method_, strict=True)
    )


def stack(stacking: Any, x: Node, path: str) -> tuple[Node, tuple[Node, ...]]:
    """The probability of a StackingClassifier, and what it takes from its learners."""
    parts = learners(stacking, x, path)
    return probability(stacking.final_estimator_, _meta(stacking, x, parts), f"{path}.final_estimator_"), parts


def _meta(stacking: Any, x: Node, parts: tuple[Node, ...]) -> Node:
    meta = concat(*parts, *([x] if stacking.passthrough else []))
    STACKED[meta] = stacking
    return meta


def _stacking(stacking: Any, x: Node, path: str) -> Node:
    return stack(stacking, x, path)[0]


def _stacking_decision(stacking: Any, x: Node, path: str) -> Node:
    meta = _meta(stacking, x, learners(stacking, x, path))
    return decision(stacking.final_estimator_, meta, f"{path}.final_estimator_")


def _stacking_label(stacking: Any, x: Node, path: str) -> Node:
    meta = _meta(stacking, x, learners(stacking, x, path))
    return label(stacking.final_estimator_, meta, f"{path}.final_estimator_")


def _voting(vote: Any, x: Node, path: str) -> Node:
    if vote.voting != "soft":
        refuse(
            vote,
            path,
            "with hard voting, which has no probability, expected voting='soft'",
            hint="voting='soft', or a learner of a StackingClassifier with stack_method='predict'",
        )
    parts = tuple(probability(e, x, f"{path}.{n}") for n, e in zip(names(vote, path), vote.estimators_, strict=True))
    weights = _weights(vote, path)
    if weights is not None:
        if not (np.isfinite(weights).all() and weights.min() >= 0 and weights.any()):
            refuse(
                vote,
                path,
                f"of the weights {weights.tolist()}, whose mean is no probability, expected none below 0 and one above",
                hint="fit it with other weights",
            )
        if not 2.0**-20 < weights.max() < 2.0**20:  # into what float32 holds; a power of two rounds nothing
            weights = np.ldexp(weights, -int(np.frexp(weights.max())[1]))
    return mean(parts, weights, 0.0, 1.0)


def _vote_label(vote: Any, x: Node, path: str) -> Node:
    """Soft votes by their mean; hard ones by the larger sum of weights, of which a tie is class 0."""
    if vote.voting == "soft":
        return label_by_probability(vote, x, path)
    labels = [label(e, x, f"{path}.{n}") for n, e in zip(names(vote, path), vote.estimators_, strict=True)]
    weights = _weights(vote, path)
    if weights is None:
        weights = np.ones(len(labels))
    if (weights == np.round(weights)).all() and np.abs(weights).sum() < 2**20:
        return Above(1, Sum(1, tuple(labels), tuple((2 * weights).tolist())), float(weights.sum()))
    if len(labels) > _COUNTED:
        refuse(
            vote,
            path,
            f"of {len(labels)} hard votes with weights that are no whole numbers, expected at most {_COUNTED}",
            hint="multiply the weights until they are whole: the votes stay the same",
        )
    return Forest(1, concat(*labels), _ballot(weights))


def _ballot(weights: Array) -> Trees:
    """A tree that asks every voter in turn, with the winner of each outcome as `np.bincount` sums its weights."""
    count = len(weights)
    inner = 2**count - 1
    own = np.arange(2 * inner + 1)
    asked = own < inner
    outcomes = (np.arange(2**count)[:, None] >> np.arange(count)[::-1]) & 1
    won = [np.argmax(np.bincount(outcome, weights, minlength=2)) for outcome in outcomes]
    return Trees(
        feature=np.where(asked, np.floor(np.log2(own + 1)).astype(np.int64), -1),
        threshold=np.where(asked, 0.5, 0.0),
        left=np.where(asked, 2 * own + 1, own),
        right=np.where(asked, 2 * own + 2, own),
        value=np.concatenate([np.zeros(inner), np.array(won, np.float64)]),
        roots=np.zeros(1, np.int64),
    )


def _weights(vote: Any, path: str) -> Array | None:
    """The weights of the fitted learners, or None; scikit-learn reads them anew at every prediction."""
    if vote.weights is None:
        return None
    dropped = [isinstance(one, str) and one == "drop" for _, one in vote.estimators]
    weights = np.asarray([weight for weight, gone in zip(vote.weights, dropped, strict=False) if not gone], np.float64)
    if len(vote.weights) != len(dropped) or len(weights) != len(vote.estimators_):
        refuse(
            vote,
            path,
            f"of {len(weights)} weights for {len(vote.estimators_)} fitted learners, expected as many",
            hint="fit it again after its learners or weights were changed",
        )
    return weights


def _bagging(bagging: Any, x: Node, path: str) -> Node:
    return mean(_bag(bagging, x, path, probability), low=0.0, high=1.0)


def _bagging_decision(bagging: Any, x: Node, path: str) -> Node:
    return mean(_bag(bagging, x, path, decision))


def _bag(bagging: Any, x: Node, path: str, translate: Translate) -> tuple[Node, ...]:
    return tuple(
        translate(estimator, select(x, features), f"{path}.estimators_[{number}]")
        for number, (estimator, features) in enumerate(
            zip(bagging.estimators_, bagging.estimators_features_, strict=True)
        )
    )


def before_last(pipeline: Any, x: Node, path: str) -> Node:
    """What the last step of a pipeline gets."""
    for name, step in pipeline.steps[:-1]:
        x = transform(step, x, f"{path}.{name}")
    return x


def _pipeline(pipeline: Any, x: Node, path: str) -> Node:
    name, last = pipeline.steps[-1]
    return probability(last, before_last(pipeline, x, path), f"{path}.{name}")


def _pipeline_decision(pipeline: Any, x: Node, path: str) -> Node:
    name, last = pipeline.steps[-1]
    return decision(last, before_last(pipeline, x, path), f"{path}.{name}")


def _pipeline_label(pipeline: Any, x: Node, path: str) -> Node:
    name, last = pipeline.steps[-1]
    return label(last, before_last(pipeline, x, path), f"{path}.{name}")


PROBABILITIES.update(
    StackingClassifier=_stacking, VotingClassifier=_voting, BaggingClassifier=_bagging, Pipeline=_pipeline
)
DECISIONS.update(
    StackingClassifier=_stacking_decision, BaggingClassifier=_bagging_decision, Pipeline=_pipeline_decision
)
LABELS.update(
    StackingClassifier=_stacking_label,
    VotingClassifier=_vote_label,
    BaggingClassifier=label_by_probability,
    Pipeline=_pipeline_label,
)
