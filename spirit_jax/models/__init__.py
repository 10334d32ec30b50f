"""The networks: arrays in, arrays out. These files know no files, no configuration format and no platform.

Each file holds the formulas of its paper. Operations that decide the speed come from `spirit_jax.kernels`.

Names of arrays end in one letter for each dimension, and annotations name the dimensions in the same way:

    B  rows of a batch            D  width of the model             L  layers
    T  time: tokens, frames       F  width of the feed-forward      C  channels
    S  time of keys               N  attention heads                R  samples of audio
    V  vocabulary                 K  key-value heads                H  features of a head

In convolutions, kernels are [K, I, O]: width, input channels, output channels. Quantizers have K classes, and codes
of a coarser rate have time N.
"""
