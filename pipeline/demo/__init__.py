"""The pipeline on made-up data, for people who have none at hand. No other package imports this one."""
