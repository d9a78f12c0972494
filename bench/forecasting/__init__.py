"""Whole trainings: the demonstration, and ETTh1 against neuralforecast."""
