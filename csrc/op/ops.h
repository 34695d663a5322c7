// The arguments of each op's kernels, after the door has checked them.
#pragma once

#include "op/append_kv.h"
#include "op/attention.h"
#include "op/attention_varlen.h"
#include "op/coupling.h"
#include "op/decode.h"
#include "op/invconv.h"
#include "op/linear.h"
#include "op/maskedconv.h"
#include "op/merge_attention.h"
#include "op/norm.h"
#include "op/randn.h"
#include "op/roofline.h"
#include "op/rope.h"
#include "op/sample.h"
#include "op/step.h"
#include "op/vq.h"
