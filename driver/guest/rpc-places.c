// SPDX-License-Identifier: GPL-2.0-only
/* Finds the places that the device tree names, and makes a file of each. */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/gfp.h>
#include <linux/module.h>
#include <linux/of.h>
#include <linux/of_irq.h>
#include <linux/slab.h>

#include "rpc.h"

#define RPC_INFO	0xC600F010
#define MOST_PLACES	16
#define NAME_MAX_BYTES	31

static struct place *places;
static unsigned int place_count;
static int irq;

static void remove_places(void)
{
	while (place_count) {
		struct place *place = &places[--place_count];

		if (place->misc.fops)
			misc_deregister(&place->misc);
		free_page((unsigned long)place->in);
		free_page((unsigned long)place->out);
	}
	kfree(places);
}

/* The place number `n` of the node. */
static int add_place(struct device_node *node, unsigned int n)
{
	struct place *place = &places[n];
	unsigned int before = 0;
	const char *name, *other;
	unsigned int i;
	int ret;

	place_count = n + 1;
	mutex_init(&place->lock);
	timer_setup(&place->timer, rpc_due, 0);
	place->in = (void *)get_zeroed_page(GFP_KERNEL);
	place->out = (void *)get_zeroed_page(GFP_KERNEL);
	if (!place->in || !place->out)
		return -ENOMEM;
	ret = of_property_read_u32_index(node, "gzvm,ports", n, &place->port);
	if (!ret)
		ret = of_property_read_string_index(node, "gzvm,port-names", n, &name);
	if (ret)
		return ret;
	/* It becomes a path. */
	if (!*name || strlen(name) > NAME_MAX_BYTES ||
	    strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != strlen(name))
		return -EINVAL;
	for (i = 0; i < n; i++)
		if (!of_property_read_string_index(node, "gzvm,port-names", i, &other))
			before += !strcmp(name, other);
	if (before)
		snprintf(place->node, sizeof(place->node), "gzvm-rpc/%s.%u", name, before);
	else
		snprintf(place->node, sizeof(place->node), "gzvm-rpc/%s", name);
	strscpy(place->name, place->node, sizeof(place->name));
	strreplace(place->name, '/', '-');
	place->misc = (struct miscdevice) {
		.minor = MISC_DYNAMIC_MINOR,
		.name = place->name,
		.nodename = place->node,
		.fops = &rpc_fops,
		.mode = 0600,
	};
	ret = misc_register(&place->misc);
	if (ret)
		place->misc.fops = NULL;
	return ret;
}

static int add_places(struct device_node *node)
{
	int count = of_property_count_u32_elems(node, "gzvm,ports");
	int n, ret = 0;

	if (count < 1 || count > MOST_PLACES)
		return -EINVAL;
	places = kcalloc(count, sizeof(*places), GFP_KERNEL);
	if (!places)
		return -ENOMEM;
	for (n = 0; !ret && n < count; n++)
		ret = add_place(node, n);
	if (ret)
		remove_places();
	return ret;
}

static int __init gzvm_rpc_init(void)
{
	struct device_node *node = of_find_compatible_node(NULL, NULL, "gzvm,rpc");
	struct arm_smccc_1_2_regs x;
	int ret;

	if (!node)
		return -ENODEV;
	ret = -ENODEV;
	if (rpc_call(RPC_INFO, 0, 0, 0, 0, &x) || x.a2 != MOST_BYTES || x.a3 > SLOTS)
		goto out;
	irq = irq_of_parse_and_map(node, 0);
	if (!irq)
		goto out;
	ret = request_irq(irq, rpc_rung, 0, KBUILD_MODNAME, &places);
	if (ret)
		goto unmap;
	ret = add_places(node);
	if (!ret)
		goto out;
	free_irq(irq, &places);
unmap:
	irq_dispose_mapping(irq);
out:
	if (ret)
		pr_err("no channels: %d\n", ret);
	of_node_put(node);
	return ret;
}

static void __exit gzvm_rpc_exit(void)
{
	/* The channels stay, for who loads it again. */
	remove_places();
	free_irq(irq, &places);
	irq_dispose_mapping(irq);
}

module_init(gzvm_rpc_init);
module_exit(gzvm_rpc_exit);

static const struct of_device_id gzvm_rpc_of[] = { { .compatible = "gzvm,rpc" }, { } };
MODULE_DEVICE_TABLE(of, gzvm_rpc_of);
MODULE_DESCRIPTION("Channels of a GenieZone VM as files");
MODULE_LICENSE("GPL");
