"""See a hybrid of tvc: one page with every path, cost, patch and map."""
