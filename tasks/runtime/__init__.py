"""What every task needs: models, devices, events and the wish to stop."""
