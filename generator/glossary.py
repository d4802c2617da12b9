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
    "audit_outcome": "generates, copies, recombines, broken, or no better than a baseline",
    "audit_passes": "whether the audit lets the networks pass",
    "audit_verdict": "the audit in words",
    "audit_relative_distance": "median distance to training runs over that of held-out runs, all prompts",
    "audit_near_rate": "share nearer to training runs than 95 % of held-out networks of about their metric",
    "audit_copy_rate": "share nearer to one training run than a third of the way to the next (a copy)",
    "audit_copy_rate_held_out": "the same of held-out runs",
    "audit_prompt_alignment": "prompt alignment of the networks that are audited",
    "audit_shuffled_prompt_alignment": "the same with prompts shuffled between networks: the control",
    "audit_networks": "networks audited that have finite parameters and metrics",
    "audit_broken": "share of those that have not",
    "audit_searched_runs": "training runs that networks were searched for in",
    "audit_training_runs": "training runs there are",
    "audit_quality_metric": "what stands for quality in the audit, on the test split",
    "audit_quality_objective": "whether small (min) or large (max) is good",
    "audit_quality_generated": "its mean over the networks for the best prompt",
    "audit_quality_held_out": "the same of held-out networks of equal validation metric",
    "audit_quality_finest": "the same of held-out runs at their best",
    "audit_overlap_most": "largest IoU of wrong predictions with a training network, mean",
    "audit_overlap_most_held_out": "the same of held-out networks",
    "audit_overlap_nearest": "IoU of wrong predictions with the training network nearest in weights, mean",
    "audit_overlap_nearest_held_out": "the same of held-out networks",
    "audit_same_mistakes_rate": "share with the mistakes of one training network, as no held-out network has",
    "audit_off_span": "share of a network outside the span of training networks, median",
    "audit_off_span_held_out": "the same of held-out networks",
    "audit_novelty_axis": "what novelty is for the verdict: in mistakes or in weights",
    "audit_nearest_baseline": "the baseline that comes nearest at equal novelty",
    "audit_margin": "by how much the networks are better than that; nothing if none is ever as new",
    "audit_margin_low": "lower end of its 95 % interval",
    "audit_beats_every_baseline": "whether that is beyond chance for all of them",
    "audit_margins": "per novelty and baseline by how much networks are better: mean, 95 % interval",
    "audit_margins_held_out": "the same of held-out networks at their best",
    "audit_distance_to_start": "median L2 distance of the networks from the networks they are updates of",
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
