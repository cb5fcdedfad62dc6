"""The parts of a stream: its order, the cells in it, minibatches and the threads that fill them."""
