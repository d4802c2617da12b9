"""What the numbers of an evaluation mean, by name."""

MEANINGS = {
    "prompt_alignment": "R² of prompts against achieved test metrics: 1 as prompted, 0 as the mean prompt",
    "prompt_alignment_std_over_seeds": "its standard deviation over seeds of the sampling noise",
    "prompt_alignment_median": "its median over networks and seeds",
    "prompt_alignment_worst_network": "its least over networks and seeds; it is not clipped",
    "best_prompt": "the prompt of the one update that is compared with SGD",
    "sgd_equivalent_steps": "SGD steps until the same start is as good as after one update, median",
    "sgd_total_steps": "length of the SGD runs",
    "sgd_equivalent_env_steps": "steps of the environment that those took, median",
    "sgd_total_env_steps": "steps of the environment in a whole run",
    "retrieval_prompt_alignment": "alignment of the control, the training checkpoint nearest the prompt",
    "distance_generated": "median distance of generated networks to the nearest training checkpoint",
    "distance_held_out": "the same for held-out SGD checkpoints of equal validation metric",
    "distance_ratio": "generated over held-out: 1 is as new as a new run, 0 is a copy",
    "task": "the learning problem",
    "sampler": "how the generator samples",
    "calibrated_prompts": "whether what is asked for was calibrated on training starts",
    "sampling_steps": "evaluations of the generator for one update",
    "trajectory": "where its sampling steps are in time",
    "networks_per_s": "networks that one process samples a second",
    "num_networks": "held-out initialisations that were prompted",
    "num_seeds": "repetitions with other sampling noise",
    "wall_s": "seconds the evaluation took",
}
MEANINGS_BY_METRIC = (
    ("one_update_", "_std_over_networks", "standard deviation over networks of {} after one update"),
    ("one_update_", "", "{} after one update with the best prompt, mean over networks and seeds"),
    ("sgd_final_", "", "{} at the end of the SGD runs from the same starts, mean"),
    ("retrieval_", "", "{} of the training checkpoints nearest the best prompt, mean"),
    ("ood_", "", "median metric of {} starts, then after each update of a row prompted for the best"),
)
"""Prefix, suffix and meaning of the numbers that there is one of for each metric."""


def meaning(key: str, rival: str) -> str:
    """In a line, or nothing for a name that is not known; `rival` is what the zoo was trained by."""
    text = MEANINGS.get(key, "")
    for prefix, suffix, form in MEANINGS_BY_METRIC:
        if not text and key.startswith(prefix) and key.endswith(suffix):
            text = form.format(key.removeprefix(prefix).removesuffix(suffix).replace("_", " "))
    return text.replace("SGD", rival)
