"""Small backbones, one for each option that changes the computation, for the suite in test_backbones.py."""

from __future__ import annotations

SMALL = dict(base_channels=8, rla_channels=4)
SMALL_BASIS = dict(base_channels=8, shared_rank=5, unique_rank=1)
LIGHT = dict(width_mult=0.25, rla_channels=4)
NARROW = dict(expansion=2, segments=(2, 4, 4), steps=(4, 3, 2))
LOOPS = dict(depth=None, blocks=(1, 2, 3, 2), loops=(1, 1, 3, 2), base_channels=8)
PLAIN = dict(base_channels=8, rla_channels=0)
#: Small models, one for each option that changes the computation.
BACKBONES: dict[str, dict] = {
    'rla-r50': dict(type='mmrecur.RLAResNet', depth=50, **SMALL),
    'rla-r101': dict(type='mmrecur.RLAResNet', depth=101, **SMALL),
    'rla-r50-v2': dict(type='mmrecur.RLAResNet', depth=50, variant='v2', **SMALL),
    'rla-r50-v3': dict(type='mmrecur.RLAResNet', depth=50, variant='v3', **SMALL),
    'rla-r50-v4': dict(type='mmrecur.RLAResNet', depth=50, variant='v4', **SMALL),
    'rla-r50-v5': dict(type='mmrecur.RLAResNet', depth=50, variant='v5', **SMALL),
    'rla-r50-v6': dict(type='mmrecur.RLAResNet', depth=50, variant='v6', **SMALL),
    'rla-eca-r50': dict(type='mmrecur.RLAResNet', depth=50, attention='eca', **SMALL),
    'rla-eca-r50-v2': dict(type='mmrecur.RLAResNet', depth=50, attention='eca', variant='v2', **SMALL),
    'rla-se-r50': dict(type='mmrecur.RLAResNet', depth=50, attention=dict(type='se', reduction=8), **SMALL),
    'rla-x50': dict(type='mmrecur.RLAResNet', depth=50, groups=2, base_width=4, **SMALL),
    'rla-r50-d': dict(type='mmrecur.RLAResNet', depth=50, deep_stem=True, avg_down=True, **SMALL),
    'rla-r50-hidden': dict(type='mmrecur.RLAResNet', depth=50, with_hidden=True, **SMALL),
    'rla-r50-v4-hidden': dict(type='mmrecur.RLAResNet', depth=50, variant='v4', with_hidden=True, **SMALL),
    'rla-r50-gn': dict(type='mmrecur.RLAResNet', depth=50, norm_cfg=dict(type='GN', num_groups=2), **SMALL),
    'rla-r50-c4': dict(type='mmrecur.RLAResNet', depth=50, out_indices=(1, 2), **SMALL),
    'rla-r50-dc5': dict(
        type='mmrecur.RLAResNet', depth=50, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2), **SMALL
    ),
    'preact-basic': dict(type='mmrecur.RLAPreActResNet', depth=14, **SMALL),
    'preact-bottleneck': dict(
        type='mmrecur.RLAPreActResNet', depth=20, block='bottleneck', with_hidden=True, **SMALL
    ),
    'preact-bottleneck-v2': dict(
        type='mmrecur.RLAPreActResNet', depth=20, block='bottleneck', variant='v2', extra_channels=4, **SMALL
    ),
    'preact-v4': dict(type='mmrecur.RLAPreActResNet', depth=14, variant='v4', out_indices=(0, 1), **SMALL),
    'preact-single': dict(type='mmrecur.RLAPreActResNet', depth=8, out_indices=(0, 1, 2), **SMALL),
    'preact-lstm': dict(
        type='mmrecur.RLAPreActResNet', depth=14, cell='lstm', share=None, with_hidden=True, **SMALL
    ),
    'preact-gru-no-exchange': dict(
        type='mmrecur.RLAPreActResNet', depth=8, cell='gru', exchange=False, with_hidden=True, **SMALL
    ),
    'preact-postact': dict(type='mmrecur.RLAPreActResNet', depth=11, post_act=True, variant='v3', **SMALL),
    'preact-plain': dict(type='mmrecur.RLAPreActResNet', depth=14, base_channels=8, rla_channels=0),
    'preact-gn': dict(
        type='mmrecur.RLAPreActResNet', depth=8, norm_cfg=dict(type='GN', num_groups=2), **SMALL
    ),
    'rla-xception': dict(type='mmrecur.RLAXception', base_channels=4, rla_channels=4),
    'rla-xception-hidden': dict(
        type='mmrecur.RLAXception', base_channels=4, rla_channels=4, with_hidden=True
    ),
    'rla-xception-c2': dict(type='mmrecur.RLAXception', base_channels=4, rla_channels=4, out_indices=(0, 1)),
    'rla-xception-gn': dict(
        type='mmrecur.RLAXception', base_channels=4, rla_channels=4, norm_cfg=dict(type='GN', num_groups=2)
    ),
    'xception': dict(type='mmrecur.RLAXception', base_channels=4, rla_channels=0),
    'densenet-bc': dict(type='mmrecur.DenseNetBC', depth=22, growth_rate=4),
    'lag-densenet-bc': dict(type='mmrecur.DenseNetBC', depth=22, growth_rate=4, share='lag'),
    'ordinal-densenet-bc': dict(
        type='mmrecur.DenseNetBC', depth=22, growth_rate=4, share='ordinal', out_indices=(0, 1)
    ),
    'lag-densenet-bc-gn': dict(
        type='mmrecur.DenseNetBC',
        depth=16,
        growth_rate=4,
        share='lag',
        norm_cfg=dict(type='GN', num_groups=2),
    ),
    'dpn': dict(type='mmrecur.DualPathResNet', depth=29, base_channels=8, dense_channels=4),
    'dpn-plain': dict(type='mmrecur.DualPathResNet', depth=20, base_channels=8, dense_channels=0),
    'dpn-gn': dict(
        type='mmrecur.DualPathResNet',
        depth=20,
        base_channels=8,
        dense_channels=4,
        norm_cfg=dict(type='GN', num_groups=2),
        out_indices=(1,),
    ),
    'rla-mobilenet': dict(type='mmrecur.RLAMobileNetV2', **LIGHT),
    'rla-mobilenet-network': dict(
        type='mmrecur.RLAMobileNetV2', share='network', out_indices=(0, 7), **LIGHT
    ),
    'rla-eca-mobilenet': dict(type='mmrecur.RLAMobileNetV2', attention='eca', out_indices=(4, 7), **LIGHT),
    'rla-mobilenet-gn': dict(
        type='mmrecur.RLAMobileNetV2',
        norm_cfg=dict(type='GN', num_groups=2),
        out_indices=(3, 7),
        **LIGHT,
    ),
    'rla-mobilenet-c1': dict(type='mmrecur.RLAMobileNetV2', out_indices=(0,), **LIGHT),
    'mobilenet': dict(type='mmrecur.RLAMobileNetV2', width_mult=0.25, rla_channels=0),
    'rla-r50-unshared': dict(type='mmrecur.RLAResNet', depth=50, share=None, **SMALL),
    'rla-r50-unshared-v4': dict(type='mmrecur.RLAResNet', depth=50, share=None, variant='v4', **SMALL),
    'rla-r50-no-exchange': dict(
        type='mmrecur.RLAResNet', depth=50, exchange=False, with_hidden=True, **SMALL
    ),
    'rla-r50-lstm': dict(type='mmrecur.RLAResNet', depth=50, cell='lstm', **SMALL),
    'rla-r50-lstm-unshared-hidden': dict(
        type='mmrecur.RLAResNet', depth=50, cell='lstm', share=None, with_hidden=True, **SMALL
    ),
    'rla-r50-gru': dict(type='mmrecur.RLAResNet', depth=50, cell='gru', variant='v3', **SMALL),
    'rla-r50-gru-no-exchange': dict(
        type='mmrecur.RLAResNet', depth=50, cell='gru', exchange=False, with_hidden=True, **SMALL
    ),
    'rla-eca-r50-lstm': dict(type='mmrecur.RLAResNet', depth=50, attention='eca', cell='lstm', **SMALL),
    'rla-se-r50-gru': dict(type='mmrecur.RLAResNet', depth=50, attention='se', cell='gru', **SMALL),
    'rla-r50-postact': dict(type='mmrecur.RLAResNet', depth=50, post_act=True, **SMALL),
    'rla-r50-postact-hidden': dict(
        type='mmrecur.RLAResNet', depth=50, post_act=True, variant='v5', with_hidden=True, **SMALL
    ),
    'rla-cbam-r50': dict(type='mmrecur.RLAResNet', depth=50, attention='cbam', **SMALL),
    'rla-cbam-r50-lstm': dict(
        type='mmrecur.RLAResNet',
        depth=50,
        attention=dict(type='cbam', spatial_norm=True, bias=True),
        cell='lstm',
        **SMALL,
    ),
    'rla-r50-plugins': dict(
        type='mmrecur.RLAResNet',
        depth=50,
        plugins=[
            dict(
                cfg=dict(type='ContextBlock', ratio=0.25),
                stages=(False, True, True, True),
                position='after_conv3',
            ),
            dict(
                cfg=dict(type='NonLocal2d'), stages=(False, False, True, False), position='before_last_block'
            ),
        ],
        **SMALL,
    ),
    'r50': dict(type='mmrecur.RLAResNet', depth=50, **PLAIN),
    'r50-wider': dict(type='mmrecur.RLAResNet', depth=50, extra_channels=8, **PLAIN),
    'se-r50-d': dict(
        type='mmrecur.RLAResNet', depth=50, attention='se', deep_stem=True, avg_down=True, **PLAIN
    ),
    'shared-r18': dict(type='mmrecur.ResNetShared', depth=18, **SMALL_BASIS),
    'shared-r34-one': dict(type='mmrecur.ResNetShared', depth=34, bases=1, **SMALL_BASIS),
    'shared-r18-bare': dict(
        type='mmrecur.ResNetShared', depth=18, basis_norm=False, loss_ortho=None, **SMALL_BASIS
    ),
    'shared-r18-gn': dict(
        type='mmrecur.ResNetShared', depth=18, norm_cfg=dict(type='GN', num_groups=2), **SMALL_BASIS
    ),
    'shared-r20': dict(type='mmrecur.ResNetShared', depth=20, shared_rank=8, base_channels=8),
    'shared-r50': dict(type='mmrecur.ResNetShared', depth=50, base_channels=8),
    'shared-r50-all': dict(type='mmrecur.ResNetShared', depth=50, share='all', base_channels=8),
    'shared-r50-c4': dict(
        type='mmrecur.ResNetShared', depth=50, share='double', base_channels=8, out_indices=(1, 2)
    ),
    'shared-r18-stages': dict(
        type='mmrecur.ResNetShared',
        depth=18,
        base_channels=8,
        shared_rank=(4, 0, 5, 6),
        unique_rank=(1, 1, 0, 2),
        bases=(1, 2, 2, 1),
        share_first=(True, True, True, False),
    ),
    'shared-r50-relaxed': dict(
        type='mmrecur.ResNetShared',
        depth=50,
        base_channels=8,
        share=('single', None, 'all', 'double'),
        share_first=(False, True, True, True),
        relaxation_rank=(2, 2, 1, 0),
    ),
    'shared-r50-plain': dict(type='mmrecur.ResNetShared', depth=50, share=None, base_channels=8),
    'shared-mobilenet': dict(type='mmrecur.MobileNetV2Shared', width_mult=0.25, out_indices=(1, 4, 7)),
    'shared-mobilenet-double': dict(
        type='mmrecur.MobileNetV2Shared', share='double', attention='eca', width_mult=0.25
    ),
    'shared-densenet': dict(
        type='mmrecur.DenseNetShared', growth_rate=4, stem_channels=8, shared_rank=4, out_indices=(0, 3)
    ),
    'shared-densenet-third': dict(
        type='mmrecur.DenseNetShared', growth_rate=4, stem_channels=8, shared_rank=4, last_basis='third'
    ),
    'shared-x50': dict(
        type='mmrecur.ResNeXtShared', depth=50, base_channels=8, groups=4, base_width=4, shared_rank=8
    ),
    'swrn-22-2-2': dict(type='mmrecur.SWRN', depth=22, width=2, num_templates=2, base_channels=8),
    'swrn-16-1': dict(type='mmrecur.SWRN', depth=16, width=1, base_channels=16),
    'swrn-22-2-folded': dict(
        type='mmrecur.SWRN',
        depth=22,
        width=2,
        num_templates=2,
        base_channels=8,
        tied_layers=dict(layer2=dict(bank=(0, 1, 0, 1)), layer3=dict(bank=(0, 0, 0, 0))),
    ),
    'swrn-16-2-c2': dict(
        type='mmrecur.SWRN', depth=16, width=2, num_templates=1, base_channels=8, out_indices=(0, 1)
    ),
    'swrn-50-2': dict(type='mmrecur.SWRN', depth=50, width=2, base_channels=8),
    'swrn-50-2-gn': dict(
        type='mmrecur.SWRN',
        depth=50,
        width=2,
        num_templates=2,
        base_channels=8,
        norm_cfg=dict(type='GN', num_groups=2),
    ),
    'wrn-10-2': dict(type='mmrecur.SWRN', depth=10, width=2, num_templates=None, base_channels=8),
    'wrn-50-2': dict(type='mmrecur.SWRN', depth=50, width=2, num_templates=None, base_channels=8),
    'recnet': dict(type='mmrecur.RecNet', **NARROW),
    'recnet-relu': dict(type='mmrecur.RecNet', activation='relu', **NARROW),
    'recnet-shared-bn': dict(type='mmrecur.RecNet', activation='shared_bn', **NARROW),
    'recnet-linear': dict(type='mmrecur.RecNet', activation='linear', kernel_size_x=1, **NARROW),
    'recnet-grouped': dict(type='mmrecur.RecNet', recurrent=False, **NARROW),
    'recnet-grouped-linear': dict(
        type='mmrecur.RecNet', recurrent=False, activation='linear', kernel_size_h=1, **NARROW
    ),
    'recnet-single-step': dict(
        type='mmrecur.RecNet', expansion=2, segments=(4, 8), steps=(1, 1), activation='linear'
    ),
    'recnet-gn': dict(type='mmrecur.RecNet', norm_cfg=dict(type='GN', num_groups=2), **NARROW),
    'recnet-imagenet': dict(
        type='mmrecur.RecNet',
        arch='small',
        expansion=2,
        segments=(2, 4, 6, 8),
        steps=(3, 2, 2, 2),
        out_indices=(1, 3),
    ),
    'dr-r': dict(type='mmrecur.DRResNet', **LOOPS),
    'dr-r-lvbn': dict(type='mmrecur.DRResNet', loop_norm='lvbn', style='caffe', **LOOPS),
    'dr-r-shared-masked': dict(type='mmrecur.DRResNet', loop_norm='shared', skip=False, **LOOPS),
    'dr-r-gn': dict(
        type='mmrecur.DRResNet', norm_cfg=dict(type='GN', num_groups=2), gate_channels=0, **LOOPS
    ),
    'dr-r-c4': dict(type='mmrecur.DRResNet', out_indices=(1, 2), **LOOPS),
    'r-r': dict(type='mmrecur.DRResNet', gated=False, **LOOPS),
    'r-r-shared': dict(type='mmrecur.DRResNet', gated=False, loop_norm='shared', **LOOPS),
    'dr-r16': dict(type='mmrecur.DRResNet', depth=16, base_channels=8),
    'dr-mobilenet': dict(type='mmrecur.DRMobileNetV2', width_mult=0.25, out_indices=(2, 7)),
    'dr-r-relaxed': dict(type='mmrecur.DRResNet', relaxation_rank=(0, 0, 2, 1), **LOOPS),
    'r-r-shared-relaxed': dict(
        type='mmrecur.DRResNet', gated=False, loop_norm='shared', relaxation_rank=1, **LOOPS
    ),
    'dr-mobilenet-relaxed': dict(
        type='mmrecur.DRMobileNetV2', width_mult=0.25, relaxation_rank=2, out_indices=(4,)
    ),
    'dr-mobilenet-c4': dict(
        type='mmrecur.DRMobileNetV2', width_mult=0.25, loop_norm='lvbn', out_indices=(4,)
    ),
}
#: Backbones that compute in different ways, for the slower checks.
DISTINCT = [
    'rla-r50',
    'rla-r50-v4',
    'rla-eca-r50',
    'rla-r50-d',
    'rla-r50-hidden',
    'rla-r50-gn',
    'rla-r50-no-exchange',
    'rla-r50-lstm-unshared-hidden',
    'rla-r50-gru',
    'rla-eca-r50-lstm',
    'rla-se-r50-gru',
    'rla-r50-postact',
    'rla-cbam-r50-lstm',
    'r50',
    'preact-basic',
    'preact-bottleneck',
    'rla-xception-hidden',
    'lag-densenet-bc',
    'ordinal-densenet-bc',
    'dpn',
    'rla-mobilenet',
    'rla-eca-mobilenet',
    'shared-r18',
    'shared-r18-gn',
    'shared-r50-all',
    'shared-r50-relaxed',
    'shared-mobilenet',
    'shared-densenet',
    'shared-x50',
    'swrn-22-2-2',
    'swrn-22-2-folded',
    'swrn-50-2',
    'recnet',
    'recnet-shared-bn',
    'recnet-linear',
    'recnet-grouped',
    'recnet-imagenet',
    'dr-r',
    'dr-r-shared-masked',
    'dr-r-relaxed',
    'r-r',
    'dr-r16',
    'dr-mobilenet',
]
#: Batch norms of states and sums, by class: they have no convolution to be fused into.
FOLLOW_NO_CONVOLUTION = {
    'RLAPreActResNet': r'hidden_norm|final_norm|layer\d\.\d+\.bn1(_hidden)?',
    'DenseNetShared': r'norm',
    'SWRN': r'hidden_norm|final_norm|layer\d\.\d+\.bn1',
}
