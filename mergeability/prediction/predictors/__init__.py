"""Define the predictors, which are scikit-learn regressors, in one file each."""
