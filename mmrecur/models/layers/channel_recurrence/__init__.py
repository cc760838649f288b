"""Channel-wise recurrence: a recurrent network that runs along the channels of a map.

The idea of RecNet: Retsinas, Elafrou, Goumas and Maragos, *RecNets: Channel-wise Recurrent Convolutional
Neural Networks*, BMVC 2019, https://arxiv.org/abs/1905.11910. The channels are split into segments, and two
small convolutions, the same for all segments, compute each output segment from an input segment and the
output segment before.

- :mod:`.conv`: the channel-wise recurrent convolutional (CRC) layer, Equations 2 to 4.
- :mod:`.recurrent_module`: a CRC layer and its transition block, Equation 7.
- :mod:`.inference`: their inference form.
"""

from mmrecur.models.layers.channel_recurrence.conv import ACTIVATIONS, ChannelRecurrentConv
from mmrecur.models.layers.channel_recurrence.recurrent_module import RecurrentModule

__all__ = ['ACTIVATIONS', 'ChannelRecurrentConv', 'RecurrentModule']
