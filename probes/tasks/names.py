"""Published names: tasks, metrics, and the ranges of metrics."""

from __future__ import annotations

from typing import Final

MULTIPLE_CHOICE: Final = (
    "multiple_choice_grade",
    "calibration_multiple_choice_brier_score",
    "expected_calibration_error",
    "weighted_log_probabilities",
    "weighted_probabilities",
    "macro_f1",
)
# A task with multiple_choice_grade has these two as well, without naming them.
CALIBRATION: Final = ("calibration_multiple_choice_brier_score", "expected_calibration_error")
GENERATIVE: Final = (
    "exact_str_match",
    "case_insensitive_str_match",
    "numeric_match_with_0_1_relative_error",
    "bleu",
    "rouge",
    "sequence_f1",
    "bleurt",
)
SCORING: Final = ("log_likelihood",)

# A poor and a perfect value of each metric that may be the preferred one (json_task.py of bigbench 1.0.0). The two that
# are errors are published as 0 to 1, like shares; here the perfect value is the lower one, so that 100 is always best.
SCORE_RANGES: Final[dict[str, tuple[float, float]]] = {
    "multiple_choice_grade": (0.0, 1.0),
    "calibration_multiple_choice_brier_score": (1.0, 0.0),
    "expected_calibration_error": (1.0, 0.0),
    "weighted_log_probabilities": (-10.0, 0.0),
    "weighted_probabilities": (-1.0, 1.0),
    "macro_f1": (0.0, 1.0),
    "exact_str_match": (0.0, 1.0),
    "case_insensitive_str_match": (0.0, 1.0),
    "numeric_match_with_0_1_relative_error": (0.0, 1.0),
    "bleu": (0.0, 100.0),
    "rouge1": (0.0, 100.0),
    "rouge2": (0.0, 100.0),
    "rougeLsum": (0.0, 100.0),
    "sequence_f1": (0.0, 100.0),
    "bleurt": (-0.1, 1.1),
    "log_likelihood": (-10.0, 0.0),
}

# The 27 files of BIG-Bench Hard are 23 tasks: two of them come with three, five and seven objects.
_SIZES: Final = ("three_objects", "five_objects", "seven_objects")
BBH_TASKS: Final[dict[str, tuple[str, ...]]] = {
    name: tuple(f"{name}_{size}" for size in _SIZES)
    if name in ("logical_deduction", "tracking_shuffled_objects")
    else (name,)
    for name in [
        "boolean_expressions",
        "causal_judgement",
        "date_understanding",
        "disambiguation_qa",
        "dyck_languages",
        "formal_fallacies",
        "geometric_shapes",
        "hyperbaton",
        "logical_deduction",
        "movie_recommendation",
        "multistep_arithmetic_two",
        "navigate",
        "object_counting",
        "penguins_in_a_table",
        "reasoning_about_colored_objects",
        "ruin_names",
        "salient_translation_error_detection",
        "snarks",
        "sports_understanding",
        "temporal_sequences",
        "tracking_shuffled_objects",
        "web_of_lies",
        "word_sorting",
    ]
}
BBH_FILES: Final = tuple(file for files in BBH_TASKS.values() for file in files)

# BIG-bench tasks that are Python code, not data: running a task would run that code.
PROGRAMMATIC: Final = frozenset(
    [
        "abstraction_and_reasoning_corpus",
        "bbq_lite",
        "boolean_expressions",
        "context_definition_alignment",
        "convinceme",
        "coqa_conversational_question_answering",
        "cycled_letters",
        "diverse_social_bias",
        "factuality_of_summary",
        "forecasting_subquestions",
        "gender_sensitivity_chinese",
        "gender_sensitivity_english",
        "high_low_game",
        "long_context_integration",
        "multistep_arithmetic",
        "muslim_violence_bias",
        "program_synthesis",
        "protein_interacting_sites",
        "python_programming_challenge",
        "question_answer_creation",
        "roots_optimization_and_games",
        "self_awareness",
        "self_evaluation_courtroom",
        "self_evaluation_tutoring",
        "simple_arithmetic",
        "simple_arithmetic_multiple_targets",
        "spelling_bee",
        "squad_shifts",
        "subject_verb_agreement",
        "sudoku",
        "taboo",
        "talkdown",
        "text_navigation_game",
        "training_on_test_set",
        "truthful_qa",
        "twenty_questions",
        "unqover",
        "web_of_lies",
        "word_problems_on_sets_and_graphs",
        "yes_no_black_white",
    ]
)
