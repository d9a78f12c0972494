"""All faults of `make mutants`."""

from __future__ import annotations

from faults_csrc import KERNELS
from faults_models import FORECASTERS
from faults_ops import OPERATOR
from faults_python import PYTHON
from faults_training import TRAINING

FAULTS = [*KERNELS, *OPERATOR, *FORECASTERS, *TRAINING, *PYTHON]
