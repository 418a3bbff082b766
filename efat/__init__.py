"""Planning for faulty chips on top of the simulator and the training back end, and the `efat` command."""
