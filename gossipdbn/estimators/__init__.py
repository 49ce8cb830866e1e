"""scikit-learn estimators over the same kernels: RBMs and deep belief networks, trained on one machine.

They follow scikit-learn's conventions (``check_estimator`` passes), so pipelines, grid searches and pickled-free model
files work: ``to_model`` gives the `gossipdbn.models.files.Model` that ``save_model`` writes and the command line reads.
Rows are arrays, CSR matrices of scipy, or `PackedRows` (bits); the form of the rows does not show in any result.
Results depend on data, settings and ``random_state`` alone, bit for bit, on any CPU.
"""

from __future__ import annotations

try:
    import sklearn.base  # noqa: F401
    from sklearn.utils.validation import validate_data as _since_1_6  # noqa: F401 - asks whether it is new enough
except ImportError as e:
    raise ImportError("gossipdbn.estimators needs scikit-learn 1.6 or newer: pip install 'gossipdbn[sklearn]'") from e

from gossipdbn.estimators.networks import DBNClassifier, DBNRegressor
from gossipdbn.estimators.rbm import RBM
from gossipdbn.models.rows import PackedRows

__all__ = ["RBM", "DBNClassifier", "DBNRegressor", "PackedRows"]
