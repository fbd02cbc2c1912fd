"""Common words of English and Mandarin by part of speech: the material of generated sentences.

English covers every phone of the language; Mandarin most syllables of everyday speech in all tones.
"""

# ruff: noqa: SIM905 (lists of words read better as text)

from __future__ import annotations

NAMES = (
    "Alice Ben Clara David Emma Frank Grace Henry Iris Jack Kate Leo Mary Nora Oliver Peter Rose Sam Tom "
    "Violet William Zoe George Joyce Arthur Beth Hugh Ruth"
).split()

NOUNS = (
    "apple baby bag ball bank bath bear bed bee bell bird boat book bottle bowl box boy bread bridge brother "
    "bus butter button cake camera candle car card cat chair cheese chicken child church city clock cloud coat "
    "coffee corn cow cup daughter day desk dinner dog door dream dress drum duck ear earth egg elephant engine "
    "eye face farm father feather finger fire fish flag floor flower fork fox friend fruit garden gate ghost "
    "girl glass glove gold grass hair hammer hand hat heart hill honey horse hospital house ice island jacket "
    "jar joke journey juice jungle key king kitchen kite knife ladder lake lamp leaf lemon letter lion map "
    "market measure milk mirror money monkey moon mother mountain mouse mouth music nail neck needle nest night "
    "nose nurse ocean office onion orange oven owl page paper park pen pencil piano picture pig pillow plane "
    "plate pocket potato prize queen question rabbit radio rain rice ring river road rock roof room rope rose "
    "sail salt sand school sea seed shadow sheep ship shirt shoe shop silver sister sky snake snow soap sock "
    "song soup spider spoon square star station stone storm street sugar summer sun table teacher tent theatre "
    "thumb tiger toe tomato tooth towel tower town toy train treasure tree truck umbrella valley village vision "
    "voice wall watch water wave whale wheel wind window wine winter wolf wood yard zebra"
).split()

ADJECTIVES = (
    "angry bad big black blue bright broken brown calm cheap clean clear cold cool dark dear deep dry early easy "
    "empty fair fast fresh full funny good green grey happy hard heavy high hot huge kind large late light little "
    "long loud low new nice old open pink poor proud quick quiet red rich rough round sad safe sharp short shy "
    "simple slow small smooth soft strange strong sweet tall thick thin tiny usual warm weak wet white wide wild "
    "wise yellow young"
).split()

VERBS_PAST = (
    "bought borrowed brought carried caught chose cleaned closed counted cut drew dropped enjoyed finished fixed "
    "followed found gave heard held helped hid kept knew left liked lost loved made measured missed moved needed "
    "opened painted passed picked pulled pushed reached remembered saw sold sent shared showed stole threw took "
    "touched turned used wanted washed watched"
).split()

VERBS = (
    "buy bring carry catch choose clean close count cut draw drop enjoy finish fix follow find give hear hold "
    "keep leave lose love make measure move need open paint pick pull push reach see sell send share show "
    "take throw touch turn use wash watch"
).split()

PREPOSITIONS = "behind under near above beside in on by beyond against before across inside around".split()

ADVERBS = (
    "again already always early carefully finally gently happily here later loudly maybe now often once "
    "quickly quietly really slowly sometimes soon there today together tomorrow tonight twice usually yesterday"
).split()

ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()

ZH_PEOPLE = (
    "我 你 他 她 我们 他们 大家 老师 学生 妈妈 爸爸 哥哥 姐姐 弟弟 妹妹 爷爷 奶奶 朋友 医生 司机 孩子 邻居 "
    "小王 小李 老张 同学 客人 工人 叔叔 阿姨 警察 画家 律师 演员 记者 老板"
).split()

ZH_NOUNS = (
    "苹果 香蕉 西瓜 葡萄 米饭 面条 饺子 包子 鸡蛋 牛奶 咖啡 茶 水 面包 蔬菜 土豆 白菜 豆腐 鱼 肉 汤 糖 盐 "
    "书 报纸 铅笔 本子 词典 地图 照片 信 钱 手机 电脑 电视 钟表 雨伞 眼镜 帽子 衣服 裤子 裙子 鞋 手套 毛巾 "
    "桌子 椅子 床 门 窗户 灯 杯子 盘子 碗 筷子 刀 钥匙 箱子 瓶子 花 草 树 叶子 石头 月亮 太阳 星星 云 雪 "
    "猫 狗 鸟 马 牛 羊 猪 鸡 鸭子 兔子 老虎 狮子 大象 熊猫 猴子 蛇 青蛙 蝴蝶 蜜蜂 汽车 火车 飞机 自行车 船 "
    "足球 篮球 吉他 钢琴 礼物 药 故事 歌 电影 问题 办法 机会 声音 颜色 春天 云彩 耳朵 鼻子 嘴 手指 头发 "
    "玉米 橘子 梨 雨衣 绿茶 女儿 旅馆 驴 军人 训练 学院 群众 穷人 熊 雄鹰 略图 月票 远方 运气 森林 城墙 "
    "翅膀 作业 准备 四季 次序 思想 死角 儿童 而且 耳机 二月 日记 热狗 人参 肉松 如意 软件 锐角 润色 若干"
).split()

ZH_PLACES = (
    "学校 公园 医院 银行 商店 超市 饭店 机场 火车站 图书馆 电影院 北京 上海 广州 南京 西安 成都 家里 办公室 "
    "教室 厨房 河边 山上 海边 路口 村子里 城里 院子里 楼上 楼下 门口 邮局 动物园 博物馆 体育馆 宿舍"
).split()

ZH_VERBS = (
    "喜欢 想要 看见 买 卖 找到 需要 带来 拿走 忘记 记得 准备 认识 画 洗 送 借 还 修理 打开 关上 讨论 寻找 "
    "选择 照顾 介绍 研究 欣赏 收拾 参观 摸 扔 切 尝 捡 数"
).split()

ZH_ADJECTIVES = (
    "大 小 高 矮 长 短 新 旧 好 坏 快 慢 冷 热 贵 便宜 漂亮 干净 安静 有趣 重要 简单 困难 红 黄 蓝 绿 白 黑 "
    "甜 酸 苦 辣 软 硬 轻 重 远 近 聪明 可爱 舒服 奇怪 勇敢"
).split()

ZH_TIMES = (
    "今天 明天 昨天 早上 中午 下午 晚上 现在 刚才 以后 周末 去年 今年 明年 春天 夏天 秋天 冬天 星期一 星期三 "
    "星期五 下个月 上个星期 前天 后天 半夜"
).split()

ZH_DIGITS = "零一二三四五六七八九"
