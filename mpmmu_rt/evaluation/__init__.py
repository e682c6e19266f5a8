"""How good a system is on labelled cases, and how sure that is: what `mpmmu-rt evaluate` computes and writes.

Probabilities of a bundle or a checkpoint (`systems`) on the part of a manifest that may be judged (`parts`) become
figures with intervals (`auc`, `figures`, `thresholds`, `curves`, `paired`), put together by `study`; `words` says what
they can't show; `page`, `plots` and `text` draw the result, from its JSON alone. Needs the extra `evaluate`.

Every interval has a confidence of 95 %. What can't be estimated is `None` with a reason, never a zero. Rows of one
patient are never taken for independent.
"""
