"""Stepwell in MLflow: `stepwell.mlflow.log_model` exports a model as it is logged; deployments are a plugin.

    flavor.py       `save_model`, `log_model`, `load_model`: a step graph as an MLflow model
    deployments.py  `mlflow deployments create -t stepwell:http://..`: MLflow models in a running service

Needs the extra `mlflow`.
"""

from stepwell.addons.mlflow.flavor import load_model, log_model, save_model

__all__ = ["load_model", "log_model", "save_model"]
