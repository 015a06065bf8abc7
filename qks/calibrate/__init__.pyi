from .choice import (
    BEST_F1 as BEST_F1,
    Choice as Choice,
    Criterion as Criterion,
    choose_threshold as choose_threshold,
)
from .fit import (
    Assessment as Assessment,
    CalibrationFit as CalibrationFit,
    assess as assess,
    calibration_table as calibration_table,
    fit_calibration as fit_calibration,
)
from .plain import choose_least_spread as choose_least_spread, plain_pictures as plain_pictures
from .platt import PlattModel as PlattModel, fit_platt as fit_platt
from .reliability import (
    ReliabilityCurve as ReliabilityCurve,
    plot_reliability as plot_reliability,
    reliability_curve as reliability_curve,
)
