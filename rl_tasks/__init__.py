"""Learning problems whose metric is a return: gymnasium environments. The first ones are still to come."""
