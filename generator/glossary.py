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
    "beyond_prompts": "the prompts from the best metric of the training runs onwards",
    "beyond_best_prompt": "the one of them that gives the best validation metric",
    "beyond_share_better": "networks made for it that are better than the best training checkpoint, on test",
    "rival_generator_curve": "median metric at the start, then after each update of a row",
    "hole_low": "the metric at which the hole begins that the training has left out",
    "hole_high": "the metric at which it ends",
    "hole_left_out": "training checkpoints in the hole, that nothing was learned from",
    "hole_error": "root mean square of achieved less prompted validation metric, prompts in the hole",
    "hole_error_beside": "the same for prompts beside it",
    "hole_error_retrieval": "the same, in the hole, of looking up among what was learned from",
    "hole_share_hit": "networks prompted inside the hole that are inside",
    "cost_zoo_s": "CPU seconds of all runs of the zoo",
    "cost_training_s": "CPU seconds of the generator's training, all workers",
    "cost_sampling_s": "CPU seconds of one update of one network",
    "walk_steps": "sampling steps of the walk along a loop of noises",
    "walk_prompt": "its prompt",
    "walk_spread": "distance of its networks from their mean over that from the start, root mean squares",
    "walk_spread_own": "the same with the generator's own one deterministic step",
    "training_checkpoints": "finite checkpoints of training runs, which the control looks up",
    "evaluated": "SHA-256 of what was evaluated",
    "arrays": "SHA-256 of the arrays behind the plots",
    "task": "the learning problem",
    "sampler": "how the generator samples",
    "calibrated_prompts": "whether what is asked for was calibrated on training starts",
    "sampling_steps": "evaluations of the generator for one update",
    "num_networks": "held-out initialisations that were prompted",
    "num_seeds": "repetitions with other sampling noise",
    "wall_s": "seconds the evaluation took",
}
MEANINGS_BY_METRIC = (
    ("one_update_", "_std_over_networks", "standard deviation over networks of {} after one update"),
    ("one_update_", "", "{} after one update with the best prompt, mean over networks and seeds"),
    ("sgd_final_", "", "{} at the end of the SGD runs from the same starts, mean"),
    ("retrieval_", "", "{} of the training checkpoints nearest the best prompt, mean"),
    ("beyond_best_network_", "", "{} of the network with the best validation metric of all beyond the best"),
    ("beyond_best_", "", "median {} of networks made for the best of the prompts beyond the best"),
    ("beyond_zoo_", "", "{} of the training checkpoint with the best validation metric"),
    ("beyond_", "", "median {} of networks made for each prompt beyond the best"),
    ("rival_", "_steps", "steps of {} until the same start is as good as after one update, median"),
    ("rival_", "_quartiles", "a quarter and three quarters of the {} are below"),
    ("rival_", "_lr", "its learning rate, of {}, as of SGD"),
    ("rival_", "_curve_lrs", "learning rates of {}, as of SGD, that are best for 1, 2, ... steps"),
    ("rival_", "_curve", "median metric of {} after 0, 1, 2, ... steps"),
    ("finetune_", "_lrs", "learning rates, as of SGD, that {} starts were trained further with, by length"),
    ("finetune_", "_std", "standard deviation over networks of {} after that training"),
    ("finetune_", "", "mean of {} after each number of epochs of further training"),
    ("cost_step_", "_s", "CPU seconds of an optimizer step of one network, {}"),
    ("break_even_", "", "networks after which the generator has paid for itself, training {}; best prompt"),
    ("walk_", "_least", "least {} along the walk"),
    ("walk_", "_most", "largest {} along the walk"),
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
