# Schedule of UniMatch V2: AdamW, 40 times the learning rate in the head, weight decay on everything,
# polynomial decay without warm-up.
_base_ = './schedule_40k_sgd.py'

optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=5e-6, betas=(0.9, 0.999), weight_decay=0.01),
    paramwise_cfg=dict(custom_keys=dict(decode_head=dict(lr_mult=40.0))),
)
