"""The MPM-MU system in torch and scikit-learn: what is trained, and what the bundle must reproduce.

Two attention encoders (`encoder`, `attention`) turn pixels into embeddings; a stacking ensemble
(`stacking`) turns the fused embedding into the probability of malignancy. `training` fits both stages,
`checkpoint` stores them, `phantom` draws images to try it all on. The runtime never imports this package.
"""

from mpmmu_rt.machine import own_threads

own_threads()  # before torch is loaded
