"""What the tests leave to a release, `-m slow`: further subjects of a property that one shows already, options of a
method whose main course is tested, and what takes minutes. Every room keeps tests of its own in the quick suite.
"""

from typing import Any

import pytest

RELEASE = {  # file -> its tests, by their names, with a parameter where others stay
  "accelerator_test": (
    "test_a_subject_sits_out_for_which_no_time_is_left",
    "test_the_full_scan_computes_what_the_loop_computes[2]",
    "test_what_is_not_measured_is_told",
  ),
  "apd_test": (
    "test_the_original_penalty[0]",
    "test_clusters_are_for_the_original_form",
    "test_tasks_that_add_nearly_the_same_hold_it_once",
    "test_the_original_penalty[2]",
  ),
  "bench_test": (
    "test_the_bare_scans_compute_what_cljax_computes[routing]",
    "test_a_loop_of_convolutions_takes_the_steps_that_are_dispatched",
    "test_rounds_interleave_and_ratios_are_made_within_them",
  ),
  "checkpoint_test": (
    "test_damaged_checkpoints_end_with_the_same_result[all truncated]",
    "test_damaged_checkpoints_end_with_the_same_result[truncated]",
  ),
  "darts_test": ("test_to_second_order_alpha_looks_through_a_step_of_the_weights",),
  "declared_test": (
    "test_no_value_of_any_keyword_ends_in_a_traceback[method-subnetwork]",
    "test_no_value_of_any_keyword_ends_in_a_traceback[stream-noisy_subsets]",
    "test_no_word_of_a_command_line_ends_in_a_traceback[method-routing]",
    "test_no_word_of_a_command_line_ends_in_a_traceback[method-lasem]",
  ),
  "den_test": ("test_units_are_added_if_the_loss_is_high_and_old_tasks_do_not_see_them",),
  "der_test": ("test_steps_and_stored_logits_are_those_of_a_plain_implementation[der-weights0]",),
  "engine_test": (
    "test_a_seed_alone_has_the_bits_it_has_among_others[plain-each]",
    "test_any_chunk_length_gives_the_same_bits[plain-48]",
    "test_executors_agree[plain-each]",
  ),
  "evaluate_test": (
    "test_a_damaged_checkpoint_is_passed_over_and_left_where_it_is",
    "test_a_method_without_parts_leaves_none",
    "test_costly_warps_and_learning_rates_of_a_sweep",
    "test_rows_are_the_first_of_each_task",
    "test_settings_multiply_and_are_checked_before_the_first_is_asked",
    "test_a_work_dir_may_be_relative",
  ),
  "expert_gate_test": ("test_a_root_expert_is_a_parent_and_never_an_answer",),
  "export_test": (
    "test_another_run_begins_with_them",
    "test_what_is_printed_asks_as_the_run_did",
  ),
  "gates_test": ("test_the_confident_gate_is_worse_than_the_one_that_saw_all",),
  "guards_test": (
    "test_routing_is_projected_through_its_gates",
    "test_both_steps_of_replay_are_projected",
  ),
  "hat_test": (
    "test_under_hard_masks_old_tasks_keep_their_bits[stack_momentum]",
    "test_under_hard_masks_old_tasks_keep_their_bits[group_norm]",
  ),
  "lasem_test": (
    "test_an_e_step_at_every_third_batch",
    "test_all_configurations_until_the_prior_is_sharp",
    "test_a_step_of_the_paper_counts_the_most_probable",
    "test_a_step_of_the_release_adds_the_posterior",
    "test_dropout_is_drawn_for_each_configuration",
    "test_the_rate_falls_over_the_whole_lifetime",
  ),
  "launch_test": ("test_a_backend_of_windows_that_does_not_exist_is_nobody_s_concern",),
  "learned_rule_test": (
    "test_the_memory_goes_back_to_zero_at_a_task_or_is_kept",
    "test_multipliers_are_counted_by_the_task",
  ),
  "looks_test": (
    "test_training_does_not_notice[two_phases]",
    "test_going_on_from_every_save_finds_the_same[two_phases]",
    "test_matrices_are_those_asked_by_hand[two_phases]",
  ),
  "memories_test": ("test_rows_offered_before_are_counted_without_dead_ones",),
  "meta_test": ("test_a_threshold_that_lets_nothing_live_is_said",),
  "modes_test": (
    "test_methods_carry_them[lwf]",
    "test_networks_of_their_own_keep_their_own_statistics",
  ),
  "notebooks_test": ("test_notebook_runs[lasem]",),
  "own_net_test": ("test_a_module_without_heads_learns_every_task[lwf]",),
  "own_test": ("test_float_vectors_of_tasks_with_different_numbers_of_classes_are_learnt",),
  "phases_test": (
    "test_a_block_is_its_steps[4-40]",
    "test_early_stop_gives_the_same_bits_by_any_chunk_length[2]",
  ),
  "pictures_test": (
    "test_what_is_drawn_goes_before_the_task_s_own_warp_and_the_normalisation_last",
    "test_where_boundaries_are_hidden_each_place_of_the_stream_is_a_visit",
    "test_one_without_the_other[options0-0-True]",
  ),
  "pool_test": ("test_rows_of_earlier_tasks_come_from_the_memory_as_it_was",),
  "progressive_test": (
    "test_a_new_column_holds_what_is_counted",
    "test_a_step_is_that_of_one_convolution_a_column[1]",
  ),
  "query_test": ("test_a_network_is_trained_in_place_of_a_rule",),
  "readout_test": (
    "test_one_head_for_all_tasks",
    "test_hidden_boundaries_and_slots_of_the_method_s_own",
  ),
  "report_test": ("test_report_arrays_that_are_gone_are_told",),
  "routing_draws_test": (
    "test_steps_draw_as_told[step]",
    "test_the_memory_has_its_own_draw",
  ),
  "routing_guard_test": (
    "test_gates_are_drawn_as_without_a_guard",
    "test_a_strength_of_zero_is_no_guard[si]",
    "test_cotraining_holds_what_it_may_not_move[si]",
  ),
  "routing_test": (
    "test_cotraining_moves_unused_experts_and_heads_only[noise]",
    "test_its_options_are_what_they_say[routed]",
    "test_its_options_are_what_they_say[rates]",
  ),
  "rule_test": (
    "test_a_permutation_of_channels_permutes_the_updates",
    "test_it_begins_as_plain_sgd[conv]",
    "test_neurons_share_weights_but_no_state",
    "test_with_a_scale_of_one_it_begins_as_a_slower_sgd",
  ),
  "sealed_test": (
    "test_a_zip_of_an_older_version_is_read_and_its_headers_are_told",
    "test_no_flipped_bit_of_any_sealed_object_is_read",
  ),
  "selection_test": (
    "test_how_often_the_right_configuration_is_found[product, mean of posteriors]",
    "test_how_often_the_right_configuration_is_found[release]",
    "test_how_often_the_right_configuration_is_found[amortised]",
  ),
  "sharing_test": (
    "test_live_parameters_are_counted_by_what_is_committed",
    "test_the_tree_is_each_configuration_by_itself[groups]",
    "test_the_tree_is_each_configuration_by_itself[tf]",
    "test_the_tree_is_each_configuration_by_itself[skips]",
    "test_the_tree_is_each_configuration_by_itself[df_cnn]",
  ),
  "subnetwork_test": (
    "test_variants_train_and_keep_what_they_froze[accuracy]",
    "test_a_task_may_use_the_weights_of_similar_tasks_only",
    "test_each_task_may_have_biases_of_its_own",
  ),
  "unroll_test": (
    "test_what_is_cut_is_held_fixed[False-True]",
    "test_the_exact_derivative_of_a_static_rule_is_that_of_central_differences",
    "test_how_a_segment_is_computed_changes_no_number[static-remat-prevent_cse=False]",
    "test_a_teacher_that_sees_what_the_student_sees_is_the_student",
  ),
  "watching_test": ("test_the_mask_of_the_task_before_or_the_loss_may_be_watched[loss]",),
  "wsn_test": (
    "test_old_tasks_keep_their_bits[cnn_one_head]",
    "test_steps_and_masks_are_those_of_a_plain_implementation[1-value]",
    "test_all_weights_win_where_the_share_is_one",
  ),
}


def at_release(*cases: Any) -> list[Any]:
  """The cases of a parametrized test, each a value or a tuple of values, that a release runs."""
  return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow) for case in cases]


def leave_to_a_release(items: list[Any]) -> None:
  """Marks the tests of `RELEASE` among those that were collected."""
  for item in items:
    if item.name in RELEASE.get(item.path.stem, ()):
      item.add_marker(pytest.mark.slow)
