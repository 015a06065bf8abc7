from .baselines import (
    baseline_methods as baseline_methods,
    best_patch_scores as best_patch_scores,
    evaluate_head as evaluate_head,
    zero_shot_scores as zero_shot_scores,
)
from .bootstrap import (
    bootstrap_intervals as bootstrap_intervals,
    bootstrap_intervals_from_stream as bootstrap_intervals_from_stream,
)
from .breakdown import (
    breakdown_by_kind as breakdown_by_kind,
    precision_per_label as precision_per_label,
    precision_per_label_from_stream as precision_per_label_from_stream,
)
from .metrics import (
    average_precision_per_label as average_precision_per_label,
    evaluate_part as evaluate_part,
    evaluate_scores as evaluate_scores,
)
from .protocols import (
    PROTOCOLS as PROTOCOLS,
    Protocol as Protocol,
    find_protocol as find_protocol,
    find_twins as find_twins,
    plan_parts as plan_parts,
)
from .report import (
    Report as Report,
    ReportConfig as ReportConfig,
    build_report as build_report,
    build_report_from_streams as build_report_from_streams,
    open_streams as open_streams,
)
from .streaming import SparseAnnotations as SparseAnnotations, StreamingScores as StreamingScores
from .tables import (
    compare_reports as compare_reports,
    load_report as load_report,
    published_report as published_report,
    report_breakdown as report_breakdown,
    report_notes as report_notes,
    report_table as report_table,
    results_table as results_table,
    save_labels as save_labels,
    save_report as save_report,
    summarise as summarise,
)
