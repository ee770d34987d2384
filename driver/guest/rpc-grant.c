// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory that goes with a call: what has no room in a message is lent to the peer, which may read it
 * until the call is over. Between protected VMs only.
 *
 * The pages are the module's, and what user space has is copied into them. Rejected: to lend pages
 * that user space has mapped. What is lent has to be empty until it is certain who got it (below),
 * and so would have to be written behind that, by user space; and the kernel could not give the
 * pages to anybody else before the last mapping, fork and pin of them is gone, which user space
 * decides. A copy of 64 KiB is what write() would make of it.
 */

#include <linux/gfp.h>
#include <linux/io.h>
#include <linux/mm.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include "rpc.h"

/* docs/abi.md, "Memory between protected VMs". */
#define VM_MEM_SHARE	0xC600F001
#define VM_MEM_RECLAIM	0xC600F004
#define RIGHTS_READ	1
#define MOST_PAGES	16
#define PAGE		4096

/* The VM id of who is at the other end. */
static int peer_of(u64 channel, u16 *id)
{
	struct arm_smccc_1_2_regs x = { .a0 = RPC_PEER, .a1 = channel };
	int ret = rpc_hvc(&x);

	*id = x.a1;
	return ret;
}

int rpc_lend(struct lent *lent, u64 channel, const void __user *from, size_t bytes)
{
	struct arm_smccc_1_2_regs x;
	u16 peer;
	int ret;

	if (!bytes || bytes > MOST_PAGES * PAGE)
		return -EINVAL;
	ret = peer_of(channel, &peer);
	if (ret)
		return ret;
	lent->bytes = bytes;
	lent->pages = alloc_pages_exact(bytes, GFP_KERNEL_ACCOUNT | __GFP_ZERO);
	if (!lent->pages)
		return -ENOMEM;
	x = (struct arm_smccc_1_2_regs) {
		.a0 = VM_MEM_SHARE,
		.a1 = virt_to_phys(lent->pages),
		.a2 = DIV_ROUND_UP(bytes, PAGE),
		.a3 = peer,
		.a4 = RIGHTS_READ,
	};
	ret = rpc_hvc(&x);
	if (ret) {
		free_pages_exact(lent->pages, bytes);
		lent->pages = NULL;
		return ret;
	}
	lent->loan = x.a1;
	/*
	 * The loan is for whoever has that id by then, and the host can end a VM and make another one
	 * in between. The peer is still there: so it had its id all the time, and the loan is for it.
	 */
	ret = peer_of(channel, &peer);
	if (!ret && copy_from_user(lent->pages, from, bytes))
		ret = -EFAULT;
	if (ret)
		rpc_take_back(lent);
	return ret;
}

void rpc_take_back(struct lent *lent)
{
	struct arm_smccc_1_2_regs x = { .a0 = VM_MEM_RECLAIM, .a1 = lent->loan };
	int ret;

	if (!lent->pages)
		return;
	/* Invalid: it came back with the end of the call. */
	ret = rpc_hvc(&x);
	if (!WARN_ON_ONCE(ret && ret != -EINVAL)) {
		memzero_explicit(lent->pages, lent->bytes);
		free_pages_exact(lent->pages, lent->bytes);
	}
	lent->pages = NULL;
}
